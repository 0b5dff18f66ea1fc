"""Pure tensor maths: no state, no `nn.Module`."""
