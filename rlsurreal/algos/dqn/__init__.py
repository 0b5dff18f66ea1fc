"""Learning action values from replay."""
