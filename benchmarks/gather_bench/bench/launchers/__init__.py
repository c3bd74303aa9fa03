"""Jobs whose ranks others have started: who the ranks are, and how they find each other for torch.distributed."""
