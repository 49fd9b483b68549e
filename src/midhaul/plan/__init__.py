"""Which scheme, and with what settings, meets a target within a budget: the search behind `midhaul plan`."""

from midhaul.goals import Goal, goal
from midhaul.plan.search import Plan, plan

__all__ = ["Goal", "Plan", "goal", "plan"]
