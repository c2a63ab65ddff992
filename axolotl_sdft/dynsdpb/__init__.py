"""DynSDPB training: each mini-batch is distilled from the logits that the model gave in the iteration before."""
