"""The one composition root: settings become data, models, teacher and method, and these become results."""

from crossdistill.runs.api import distill, train
from crossdistill.runs.describe import describe_method, describe_methods
from crossdistill.runs.inspect import evaluate, predict
from crossdistill.runs.look import look
from crossdistill.runs.plan import Plan, execute, make_plan
from crossdistill.runs.quickstart import quickstart
from crossdistill.runs.recipes import copy_recipe, list_recipes, read_recipe, recipe_path

__all__ = [
    "Plan",
    "copy_recipe",
    "describe_method",
    "describe_methods",
    "distill",
    "evaluate",
    "execute",
    "list_recipes",
    "look",
    "make_plan",
    "predict",
    "quickstart",
    "read_recipe",
    "recipe_path",
    "train",
]
