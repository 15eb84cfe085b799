"""Networks and gradients to look at: before running, after the forward, after the backward."""
