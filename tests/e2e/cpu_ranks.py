"""A plugin for tests alone: lets Axolotl's several processes train on a machine without GPUs.

Axolotl gives each process the accelerator of its local rank; without one, loading the model would fail.
"""

from axolotl.integrations.base import BasePlugin


class CpuRanksPlugin(BasePlugin):
    def register(self, cfg):
        import torch

        # A CUDA build without a driver can't say which of its GPUs reach each other.
        torch.cuda.can_device_access_peer = lambda *devices: False

    def load_datasets(self, cfg, preprocess=False):
        cfg.device_map = {"": "cpu"}
