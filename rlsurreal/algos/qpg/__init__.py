"""Learning continuous actions from replay, along the gradient of an action value."""
