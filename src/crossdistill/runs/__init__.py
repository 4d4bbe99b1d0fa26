"""The one composition root: settings become data, models, teacher and method, and these become results."""

from crossdistill.runs.api import distill, train
from crossdistill.runs.bench import bench_speed, try_speed
from crossdistill.runs.describe import describe_method, describe_methods
from crossdistill.runs.inspect import evaluate, predict
from crossdistill.runs.look import look
from crossdistill.runs.plan import Plan, execute, make_plan
from crossdistill.runs.quickstart import quickstart
from crossdistill.runs.recipes import copy_recipe, list_recipes, read_recipe, recipe_kind, recipe_path
from crossdistill.runs.store_check import verify_store
from crossdistill.runs.store_settings import StoreSettings, load_store_settings
from crossdistill.runs.store_teacher import is_main_process, store_teacher
from crossdistill.store import Keep

__all__ = [
    "Keep",
    "Plan",
    "StoreSettings",
    "bench_speed",
    "copy_recipe",
    "describe_method",
    "describe_methods",
    "distill",
    "evaluate",
    "execute",
    "is_main_process",
    "list_recipes",
    "load_store_settings",
    "look",
    "make_plan",
    "predict",
    "quickstart",
    "read_recipe",
    "recipe_kind",
    "recipe_path",
    "store_teacher",
    "train",
    "try_speed",
    "verify_store",
]
