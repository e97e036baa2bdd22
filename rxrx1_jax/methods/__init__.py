"""Corrections of batch effects after training, and the figures that judge them."""
