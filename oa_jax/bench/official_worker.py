"""Training steps of an official PyTorch code, in a process that needs PyTorch and the code's
checkout, and not oa-jax:

    python official_worker.py MODEL.py CHECKOUT BATCHES.npz

MODEL.py is `official_torch.py` of a backbone, with `build(sizes, arrays, device)` -> (model,
step(batch) -> loss). BATCHES.npz is what `bench/official.py` wrote. One line of JSON goes to
standard output when the model stands, and one for each line of standard input: the seconds of a
step on every batch, and the most memory so far.
"""

import json
import os
import resource
import runpy
import sys
import tempfile
import time

import numpy as np
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(code: str, checkout: str, path: str) -> None:
    sys.path.insert(0, checkout)
    torch.manual_seed(0)
    with np.load(path) as file:
        arrays = dict(file)
    sizes = json.loads(str(arrays.pop("sizes")))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        model, step = runpy.run_path(code)["build"](sizes, arrays, DEVICE)
        os.chdir("/")
    batches = [{} for _ in range(sizes["n_batches"])]
    for key, values in arrays.items():
        name, _, number = key.rpartition("/")
        if number.isdecimal():  # the others are tables
            batches[int(number)][name] = torch.from_numpy(values)
    on_gpu = DEVICE.type == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads"
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = {"torch": torch.__version__, "device": device, "n_parameters": trained}
    found["matmul_precision"] = torch.get_float32_matmul_precision()
    print(json.dumps(found), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        loss = [step(batch) for batch in batches][-1]
        if on_gpu:
            torch.cuda.synchronize()
        found = {"seconds": time.perf_counter() - begin, "loss": loss}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found["peak_bytes"] = torch.cuda.max_memory_allocated() if on_gpu else peak
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
