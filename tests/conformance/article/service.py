"""A product API as teams wrote it in front of Triton's TensorRT-LLM backend: BentoML for HTTP, tritonclient for the
engine, the prompt template in between. The test of this folder runs it with `bentoml serve` against our gRPC port; nothing
in it knows that the port is ours.

Environment: TRITON_GRPC (host:port of the engine), PROMPT_TEMPLATE ({system_prompt} and {user_prompt})."""
import os
import random
from typing import Annotated, AsyncGenerator, Optional

import bentoml
import numpy as np
import tritonclient.grpc.aio as triton
from annotated_types import Ge, Le

ENGINE = os.environ.get("TRITON_GRPC", "localhost:8001")
MAX_TOKENS = 1024
SYSTEM_PROMPT = os.environ.get("SYSTEM_PROMPT", "You are a helpful assistant.")
LLAMA3 = ("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system_prompt}<|eot_id|>"
          "<|start_header_id|>user<|end_header_id|>\n\n{user_prompt}<|eot_id|>"
          "<|start_header_id|>assistant<|end_header_id|>\n\n")
TEMPLATE = os.environ.get("PROMPT_TEMPLATE", LLAMA3)


def tensor(name, value, datatype, dtype):
    data = np.array([[value]], dtype=dtype)
    result = triton.InferInput(name, data.shape, datatype)
    result.set_data_from_numpy(data)
    return result


@bentoml.service(name="article-llm-service", traffic={"timeout": 300}, resources={"cpu": "1"}, workers=1)
class ArticleService:
    def __init__(self) -> None:
        self.engine = None

    @bentoml.api
    async def generate(
        self,
        prompt: str = "Explain superconductors in plain English",
        system_prompt: Optional[str] = SYSTEM_PROMPT,
        max_tokens: Annotated[int, Ge(128), Le(MAX_TOKENS)] = MAX_TOKENS,
    ) -> AsyncGenerator[str, None]:
        if self.engine is None:  # in the worker's event loop
            self.engine = triton.InferenceServerClient(ENGINE)
        if system_prompt is None:
            system_prompt = SYSTEM_PROMPT
        text = TEMPLATE.format(user_prompt=prompt, system_prompt=system_prompt)
        inputs = [tensor("text_input", text.encode(), "BYTES", np.object_),
                  tensor("max_tokens", max_tokens, "INT32", np.int32),
                  tensor("stream", True, "BOOL", np.bool_),
                  tensor("temperature", 0.0, "FP32", np.float32)]

        async def requests():
            yield {"model_name": "ensemble", "inputs": inputs, "request_id": str(random.getrandbits(62)),
                   "outputs": [triton.InferRequestedOutput("text_output")]}

        async for result, error in self.engine.stream_infer(inputs_iterator=requests()):
            if error is not None:
                yield str({"status": "error", "message": error.message()})
                return
            yield result.as_numpy("text_output")[0].decode("utf-8")
