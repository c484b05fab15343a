#!/usr/bin/env python3
"""Texts -> JSON: of each its tokens, and of Hugging Face's own model in float32 the final hidden state of the last token and
the mean over all, both of length 1. usage: hidden_states.py MODEL.gguf TOKENIZER_FOLDER < texts.json"""
import json
import pathlib
import sys

import torch
from transformers import AutoModel, AutoTokenizer

path = pathlib.Path(sys.argv[1])
model = AutoModel.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
answers = []
for text in json.load(sys.stdin):
    tokens = tokenizer(text)["input_ids"]
    with torch.no_grad():
        states = model(torch.tensor([tokens])).last_hidden_state[0]
    unit = lambda v: (v / v.norm()).tolist()
    answers.append({"tokens": tokens, "last": unit(states[-1]), "mean": unit(states.mean(0))})
json.dump(answers, sys.stdout)
