"""Recipes: plain data that says how a network is trained on rows of several levels.

`base` says what a recipe is; `multilevel` and `transfer` are those of the two papers,
`hybrid` is ours and the one to start with.
"""

from sbi_multilevel.recipes.base import Recipe, Stage, Term
from sbi_multilevel.recipes.hybrid import Hybrid
from sbi_multilevel.recipes.multilevel import Multilevel
from sbi_multilevel.recipes.transfer import Transfer

__all__ = [
    "RECIPES",
    "Hybrid",
    "Multilevel",
    "Recipe",
    "Stage",
    "Term",
    "Transfer",
    "get_recipe",
]

RECIPES: dict[str, Recipe] = {
    "hybrid": Hybrid(),
    "multilevel": Multilevel(),
    "transfer": Transfer(),
}


def get_recipe(recipe: str | Recipe) -> Recipe:
    """The recipe of a name, or the recipe itself.

    Args:
        recipe: `"hybrid"`, `"multilevel"` or `"transfer"`, or a recipe.

    Raises:
        ValueError: If no recipe has this name.

    Example:
    --------

    ::

        >>> get_recipe("multilevel").adjustment
        'rescale_project'
    """
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise ValueError(
            f"recipe must be one of {sorted(RECIPES)}, a `Hybrid(...)`, a "
            f"`Multilevel(...)` or a `Transfer(...)`, but is {recipe!r}."
        )
    return RECIPES[recipe]
