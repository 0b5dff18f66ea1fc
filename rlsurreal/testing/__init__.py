"""Agents and environments made for tests: exact, fast, and able to fail on demand."""
