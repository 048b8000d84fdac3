"""The exercises, in the order in which a course would set them; each stands alone."""

EXERCISES = ["ring"]
