"""What a run cost and whether it helped: cost counters, statistics over seeds, facts about the machine."""

from crossdistill.analysis.compare import Difference, Summary, difference, summarise, verdict
from crossdistill.analysis.cost import Cost, cost
from crossdistill.analysis.environment import environment

__all__ = ["Cost", "Difference", "Summary", "cost", "difference", "environment", "summarise", "verdict"]
