"""Every public name is documented, and the code of every how-to page runs.

Sphinx is not needed. `make docs` builds the site and fails on unresolved references.
"""

import doctest
import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import torch
from sbi.diagnostics import check_tarp, run_sbc, run_tarp
from sbi.diagnostics.sbc import check_uniformity_frequentist
from sbi.inference import DirectPosterior, EnsemblePosterior
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch.distributions import MultivariateNormal, Normal

from sbi_multilevel.estimators.mixture import MixtureEstimator

DOCS = Path(__file__).parents[1] / "docs"
HOW_TO = sorted(path.stem for path in (DOCS / "howto").glob("*.md"))
QUICK = ("embedding_net",)

spec = importlib.util.spec_from_file_location("docs_pages", DOCS / "pages.py")
assert spec is not None and spec.loader is not None
pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pages)

PUBLIC = {
    path: value
    for path, value in pages.public_names().items()
    if inspect.isclass(value) or inspect.isfunction(value)
}
# public names without an example, and the reason; results are exempt as well
NO_EXAMPLE = {
    "sbi_multilevel.TooManyFailures": "an error",
    "sbi_multilevel.level_maps.register_level_map": "see `LevelMapKind`",
    "sbi_multilevel.level_maps.standardize_to": "see `fit_alignments`",
    "sbi_multilevel.methods.hybrid.HybridSummary": "returned; see its how-to page",
    "sbi_multilevel.simulation.LostSimulations": "an error",
    "sbi_multilevel_benchmarks.BenchmarkTask": "abstract; see the package",
    "sbi_multilevel_benchmarks.PosteriorTask": "abstract",
    "sbi_multilevel_benchmarks.Fit": "returned by methods; see the package",
    "sbi_multilevel_benchmarks.evaluated": "called by methods; see the package",
    "sbi_multilevel_benchmarks.register_method": "changes the state of other tests",
    "sbi_multilevel_benchmarks.register_task": "changes the state of other tests",
}
# constructors that are not public, and the reason
NO_ARGUMENTS = {
    "sbi_multilevel.SimulationStore": "made by `create` or `open`",
    "sbi_multilevel.TooManyFailures": "arguments of an error",
    "sbi_multilevel.level_maps.LevelMapKind": "a protocol",
    "sbi_multilevel.simulation.LostSimulations": "arguments of an error",
}


def documented(*docs):
    """Names under `Args:` in docstrings, and in docstrings that they refer to."""
    found = set()
    for doc in map(inspect.cleandoc, filter(None, docs)):
        _, _, after = doc.partition("\nArgs:\n")
        section = re.split(r"\n(?=\S)", after)[0]
        found |= set(re.findall(r"^    \*{0,2}(\w+):", section, flags=re.M))
        for name in re.findall(
            r"^Arguments and errors are those of `(\w+)`", doc, re.M
        ):
            found |= documented(PUBLIC[f"{pages.PACKAGE}.{name}"].__doc__)
    return found


def arguments(function):
    names = inspect.signature(function).parameters
    return {name for name in names if name not in ("self", "cls")}


def _is_ours(value):
    return value.__module__.startswith("sbi_multilevel")


def check_summary(doc):
    """The first paragraph is one sentence."""
    first = " ".join((doc or "").partition("\n\n")[0].split())
    assert first.endswith("."), first
    assert not re.search(r"\w{2}\. [A-Z]", first), first


@pytest.mark.parametrize("path", PUBLIC)
def test_public_names_are_documented(path):
    value = PUBLIC[path]
    check_summary(value.__doc__)
    if path not in NO_ARGUMENTS:
        lineage = inspect.getmro(value) if inspect.isclass(value) else (value,)
        ours = [
            each for each in lineage if each.__module__.startswith("sbi_multilevel")
        ]
        known = documented(*(each.__doc__ for each in ours))
        assert arguments(value) <= known


@pytest.mark.parametrize("path", [p for p in PUBLIC if inspect.isclass(PUBLIC[p])])
def test_their_methods_are_documented(path):
    for name in pages.own_members(path):
        found = [
            vars(base)[name] for base in PUBLIC[path].__mro__ if name in vars(base)
        ]
        functions = [getattr(f, "__func__", getattr(f, "fget", f)) for f in found]
        check_summary(functions[0].__doc__)
        if not isinstance(found[0], property):
            docs = [function.__doc__ for function in functions]
            if "arguments as of the class" in docs[0]:
                docs.append(PUBLIC[path].__doc__)
            assert arguments(functions[0]) <= documented(*docs), name


def results():
    """Classes returned by public functions, and classes of their fields."""
    by_name = {path.rpartition(".")[2]: path for path in PUBLIC}
    found, new = set(), [f.__annotations__.get("return", "") for f in PUBLIC.values()]
    while new:
        names = {by_name.get(word) for word in re.findall(r"\w+", str(new.pop()))}
        for path in names - found - {None}:
            found.add(path)
            new += vars(PUBLIC[path]).get("__annotations__", {}).values()
    return found


@pytest.mark.parametrize("path", PUBLIC)
def test_public_names_have_an_example(path):
    value = PUBLIC[path]
    members = pages.own_members(path) if inspect.isclass(value) else []
    documents = [value, *(inspect.getattr_static(value, name) for name in members)]
    has_example = any(">>>" in (each.__doc__ or "") for each in documents)
    assert not (has_example and path in NO_EXAMPLE)
    assert has_example or path in NO_EXAMPLE or path in results()


def test_results_are_classes_that_functions_return():
    found = results()
    assert {f"{pages.PACKAGE}.{name}" for name in ("Pilot", "Advice")} <= found
    assert f"{pages.PACKAGE}.MLNPE" not in found


def test_names_without_example_are_public():
    assert set(NO_EXAMPLE) | set(NO_ARGUMENTS) <= set(PUBLIC)


def test_documented_arguments_are_found():
    doc = """Do it.

    Args:
        one: First, see
            two: not an argument.
        *rest: Others.

    Returns:
        three: Nothing.
    """
    assert documented(doc) == {"one", "rest"}


@pytest.fixture(scope="module")
def written():
    return pages.pages()


def test_the_site_has_every_public_name_and_module(written):
    api = "".join(text for path, text in written.items() if path.startswith("api/"))
    for path in pages.public_names():
        assert re.search(rf"^( {{3}}|\.\. py:data:: ){re.escape(path)}$", api, re.M)
    for module, doc in pages.module_docs().items():
        assert doc, module
        known = f".. py:module:: {module}\n"
        if module != pages.PACKAGE and module not in PUBLIC:
            assert sum(known in text for text in written.values()) == 1, module


def test_the_guide_has_every_section_of_the_readme(written):
    titles = re.findall(r"^## (.+)$", (DOCS.parent / "README.md").read_text(), re.M)
    guide = {k: v for k, v in written.items() if k.startswith("guide/")}
    assert [t for t in titles if not any(f"# {t}\n" in g for g in guide.values())] == []
    assert all(
        f"   {Path(name).stem}\n" in guide["guide/index.rst"] or "_" in name
        for name in guide
        if name.endswith(".md")
    )


def run(name):
    """Run the examples of a page, without its fences."""
    text = (DOCS / "howto" / f"{name}.md").read_text("utf-8")
    text = re.sub(r"^```.*$", "", text, flags=re.M)
    page = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    assert page.examples
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.FAIL_FAST
    report = []
    result = doctest.DocTestRunner(optionflags=flags).run(page, out=report.append)
    assert result.failed == 0, "".join(report)
    return page.globs


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in HOW_TO
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_examples_of_how_to_pages_run(name):
    run(name)


# Statements of the pages about diagnostics, for known posteriors

PRIOR = MultivariateNormal(torch.zeros(2), torch.eye(2))


class Conjugate(ConditionalDensityEstimator):
    """The exact posterior of x = theta + noise / 2, with its width scaled."""

    def __init__(self, width):
        super().__init__(torch.nn.Identity(), torch.Size((2,)), torch.Size((2,)))
        self.width = width

    def _normal(self, x):
        return Normal(x / 1.25, self.width * 0.2**0.5)

    def log_prob(self, input, condition, **kwargs):
        return self._normal(condition).log_prob(input).sum(dim=-1)

    def sample(self, sample_shape, condition, **kwargs):
        return self._normal(condition).sample(sample_shape)

    def loss(self, input, condition, **kwargs):
        return -self.log_prob(input, condition)


def conjugate(width):
    estimator = MixtureEstimator([Conjugate(width)], torch.ones(1), "theta")
    return DirectPosterior(estimator, PRIOR)


def area(posterior, n, num_samples):
    """Area to the curve of TARP over test simulations."""
    theta = PRIOR.sample((n,))
    x = theta + 0.5 * torch.randn(n, 2)
    curve = run_tarp(
        theta, x, posterior, num_posterior_samples=num_samples, show_progress_bar=False
    )
    return check_tarp(*curve)[0]


@pytest.mark.parametrize("width", (0.6, 1.0, 1.6))
def test_sbc_and_tarp_detect_a_wrong_width(width):
    n, posterior = 1_000, conjugate(width)
    theta = PRIOR.sample((n,))
    x = theta + 0.5 * torch.randn(n, 2)
    options = {"num_posterior_samples": 300, "show_progress_bar": False}
    ranks, _ = run_sbc(theta, x, posterior, **options)
    p_values = check_uniformity_frequentist(ranks, 300)
    errors = area(posterior, n, 300) / (0.16 / n**0.5)
    if width == 1:
        assert p_values.min() > 0.01 and abs(errors) < 3
    else:
        assert p_values.max() < 0.001
        assert errors < -3 if width < 1 else errors > 3


def test_the_standard_error_of_the_area_of_tarp():
    areas = torch.tensor([area(conjugate(1.0), 200, 100) for _ in range(100)])
    # a standard deviation over 100 draws has a relative error of 1 / sqrt(200)
    assert areas.std() * 200**0.5 == pytest.approx(0.16, rel=4 / 200**0.5)
    assert areas.mean().abs() < 4 * areas.std() / 100**0.5


def test_samples_of_ensembles_of_sbi_are_sorted_by_member():
    # an untrained network has the mean of the data it was built on
    at = [torch.full((50, 2), centre) + 0.1 * torch.randn(50, 2) for centre in (-4, 4)]
    members = [DirectPosterior(posterior_nn("mdn")(data, data), PRIOR) for data in at]
    posterior, x = EnsemblePosterior(members), torch.zeros(100, 2)
    samples = posterior.sample((100,), x=x[:1], show_progress_bars=False)
    of_second = samples[:, 0] > 0
    assert of_second.any() and not of_second.all()
    assert bool((of_second.int().diff() >= 0).all())  # one member after the other
    options = {"num_posterior_samples": 100, "show_progress_bar": False}
    _, averaged = run_sbc(samples, x, posterior, **options)
    assert len((averaged[:, 0] > 0).unique()) == 1  # of one member
    drawn = posterior.sample_batched((1,), x=x, show_progress_bars=False)[0]
    assert len((drawn[:, 0] > 0).unique()) == 1


def test_a_builder_of_sbi_holds_one_embedding_net():
    build = posterior_nn("mdn", embedding_net=torch.nn.Linear(2, 2))
    data = torch.randn(50, 2)
    first, second = (build(data, data).embedding_net for _ in range(2))
    assert next(first.parameters()) is next(second.parameters())
