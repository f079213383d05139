"""A second judge: z3 tries to refute every implication that the symbolic proof accepts."""
