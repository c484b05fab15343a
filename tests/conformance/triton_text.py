"""Text generation as users of tritonclient write it: tensors in, text out, the same for its HTTP and gRPC modules."""
import numpy as np

TYPES = {str: ("BYTES", np.object_), int: ("INT32", np.int32), bool: ("BOOL", np.bool_), float: ("FP32", np.float32)}


def tensor(module, name, value, shape=(1, 1), datatype=None):
    """One value as a tensor; a list is a row of them."""
    values = value if isinstance(value, list) else [value]
    kind, dtype = TYPES[type(values[0])]
    if datatype == "UINT64":
        kind, dtype = datatype, np.uint64
    if kind == "BYTES":
        values = [v.encode() for v in values]
    data = np.array(values, dtype=dtype).reshape(shape if not isinstance(value, list) else shape[:-1] + (len(value),))
    result = module.InferInput(name, data.shape, kind)
    result.set_data_from_numpy(data)
    return result


def text_inputs(module, text, max_tokens=8, shape=(1, 1), stream=None, **more):
    inputs = [tensor(module, "text_input", text, shape), tensor(module, "max_tokens", max_tokens, shape)]
    if stream is not None:
        inputs.append(tensor(module, "stream", stream, shape))
    for name, value in more.items():
        datatype = "UINT64" if name in ("random_seed", "seed") else None
        inputs.append(tensor(module, name, value, shape, datatype))
    return inputs


def outputs(module, *names):
    return [module.InferRequestedOutput(name) for name in names]


def text_of(result):
    """`text_output` as one string; it is one-dimensional, one element a sequence. tritonclient makes bytes of a binary or raw
    tensor and str of one in JSON."""
    array = result.as_numpy("text_output")
    assert array.ndim == 1, array.shape
    return array[0] if isinstance(array[0], str) else array[0].decode()
