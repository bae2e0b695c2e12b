"""How long a gradient step of SAC takes: ours, PyTorch's and Brax's.

    pip install torch                      # for the rows of PyTorch; a CPU build is enough here
    python benchmarks/update.py            # batch 1,024, networks 3 x 256, sizes of PegInsertionSide
    python benchmarks/update.py --batch-size 256 --no-torch

In turns in the same process, on one batch that lies on the device:

- ours: `SAC.update` of preset `pd`, a scan of updates in one program, as training takes them;
- torch, torch.compile: the same mathematics (`torch_sac.py`), one step after another from Python;
  checked first to give the same losses;
- brax: the losses and optimiser steps of `brax.training.agents.sac`, joined as its `sgd_step` does,
  in a scan as well, at the same widths and batch;
