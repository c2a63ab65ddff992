"""What was lost by pruning and won back by training."""
