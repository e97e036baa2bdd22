"""Networks, the heads that make their logits, and the losses."""
