"""Open a request: everything that can be refused is refused here, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from verifier.artifact.program import Artifact, TensorFacts, open_artifact
from verifier.audit.infer import infer_recipe
from verifier.checks.check import ALL_IMAGES, DEVICE, ELSEWHERE, IMAGE, OFFICIAL, PUBLISHED_ANSWER, Check
from verifier.checks.registry import select
from verifier.core.errors import CheckpointError, ManifestError, UsageError
from verifier.core.prices import checked_prices
from verifier.core.system import ARM, machine
from verifier.core.types import Recipe
from verifier.export.manifest import Manifest, read_manifest
from verifier.families.checkpoint import EMBEDDED, Checkpoint
from verifier.families.conventions import DECODER, ENCODER, recognize
from verifier.families.driver import Caller, caller_of
from verifier.families.family import Family
from verifier.families.pixels.apps.registry import app_named
from verifier.families.pixels.image_file import read_image
from verifier.families.registry import open_checkpoint, open_family
from verifier.families.tokens.agreement import open_tokenizer
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.golden.records import (
    Budget,
    Expectation,
    GoldenImage,
    GoldenSet,
    MissingGoldenError,
    load_budget,
    load_expectation,
    load_golden,
)
from verifier.measures.evidence import Subjects, golden_folder
from verifier.measures.tokenizer import ToShip, find_tokenizers
from verifier.runner.protocol import Runner
from verifier.runner.remote import OnTransfer
from verifier.runner.targets import make_runner, no_transfer

PACKAGED = ("photo_astronaut.jpg", "tall_1.png", "photo_coffee.jpg", "large_1001x777.png")
"""Pictures that stand in for golden ones: a square photograph, a tall drawing, a wide photograph, a large drawing that is shrunk."""


@dataclass(frozen=True)
class Request:
    """What a face asks for. A kernel that differs from its program is saved in the folder `reproduction`. `images` are globs of
    golden images, all if there are none. `tokenizer` is the file that ships; those beside the program if there is none. The evidence is saved in the
    folder `keep_evidence`. `refresh` computes kept answers anew. `prices` are budgets of quantization by metric, in place of the default ones
    (`verifier.core.prices`). `apps` are those whose picture paths are judged (`verifier.families.pixels.apps`)."""

    pte: Path
    model: str | None = None
    target: str = "local"
    checks: tuple[str, ...] = ()
    allow_partial: bool = False
    image: Path | None = None
    reproduction: Path | None = None
    images: tuple[str, ...] = ()
    tokenizer: Path | None = None
    keep_evidence: Path | None = None
    refresh: bool = False
    prices: dict[str, float] = field(default_factory=dict)
    apps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opened:
    """Everything that can be refused, read and found to belong together. Nothing has run yet. `having` is what some checks are made for alone."""

    request: Request
    artifact: Artifact
    manifest: Manifest | None
    checkpoint: Checkpoint
    family: Family
    tokenizer: Tokenizer
    recipe: Recipe
    checks: tuple[Check, ...]
    having: frozenset[str]
    golden: GoldenSet
    expectation: Expectation | None
    budget: dict[str, Budget] | None
    runner: Runner
    to_ship: ToShip

    @property
    def caller(self) -> Caller:
        """How the program is called."""
        return caller_of(self.artifact, self.family)


def _check_belonging(artifact: Artifact, manifest: Manifest | None, checkpoint: Checkpoint) -> None:
    if manifest is None:
        return
    if manifest.checkpoint_sha256 != checkpoint.sha256:
        raise CheckpointError(
            "this checkpoint is not the one that the artifact was made from",
            got=f"{checkpoint.name} {checkpoint.sha256[:16]}",
            expected=f"{manifest.checkpoint_id} {manifest.checkpoint_sha256[:16]}",
            where=checkpoint.directory,
            fix="give --model the checkpoint of the manifest, or export this checkpoint",
        )
    if manifest.recipe.max_seq_len != artifact.max_seq_len:
        raise ManifestError(
            "the manifest belongs to another file: its max_seq_len is not the program's",
            got=f"get_max_seq_len {artifact.max_seq_len}",
            expected=manifest.recipe.max_seq_len,
            where=artifact.path,
            fix="put the manifest of this very file beside it, or remove it",
        )


def _require_same_model(artifact: Artifact, family: Family) -> None:
    """Raise `CheckpointError` for a program of another model: neither the image tokens nor the width nor the vocabulary are the checkpoint's. One that is
    wrong is a fault of a signature."""
    sizes, methods = family.sizes(artifact.max_seq_len), artifact.methods
    wanted = (sizes.patches, sizes.width, sizes.vocabulary)
    last = [(methods[ENCODER].outputs[0], -2), (methods[DECODER].inputs[0], -1), (methods[DECODER].outputs[0], -1)]
    found = tuple(value.sizes[at] if isinstance(value, TensorFacts) else 0 for value, at in last)
    if any(one == other for one, other in zip(found, wanted, strict=True)):
        return
    says = "{} image tokens, width {}, vocabulary {}"
    raise CheckpointError(
        "the program is of another model than the checkpoint",
        got=says.format(*found),
        expected=says.format(*wanted),
        where=artifact.path,
        fix="give --model the checkpoint that the program was exported from",
    )


def open_request(request: Request, on_transfer: OnTransfer = no_transfer) -> Opened:
    """Read everything that a verification needs, and connect to the target; `on_transfer` is called while files are sent there.

    Whoever opens closes the runner. Raises `VerifierError` subclasses; see there for what they say.
    """
    expectation = load_expectation(request.model)
    select(request.checks)  # a glob that matches nothing is refused first: a connection takes time
    checked_prices(request.prices)
    for name in request.apps:
        app_named(name)
    if request.image is not None:
        read_image(request.image)
    artifact = open_artifact(request.pte)
    convention = recognize(artifact)
    to_ship = find_tokenizers(request.pte, request.tokenizer)
    artifact.max_seq_len  # noqa: B018  refused here if the file does not say
    manifest = read_manifest(request.pte)
    checkpoint = open_checkpoint(request.model)
    checkpoint.require_usable()
    family = open_family(checkpoint, convention)
    _check_belonging(artifact, manifest, checkpoint)
    _require_same_model(artifact, family)
    tokenizer = open_tokenizer(checkpoint)
    recipe = manifest.recipe if manifest else infer_recipe(artifact, family)
    golden = _chosen(_golden_of(checkpoint, family, tokenizer), request.images)
    kind = request.target.partition(":")[0]
    own = kind in ("local", "official")  # both call the methods by the local runtime
    budget = load_budget(golden_folder(checkpoint), checkpoint.sha256, recipe.release, "local" if own else kind)
    runner = make_runner(request.target, on_transfer)
    possible = {
        IMAGE: request.image is not None,
        PUBLISHED_ANSWER: request.image is not None and expectation is not None,
        DEVICE: runner.isa == ARM or runner.isa != machine(),
        ELSEWHERE: runner.isa != machine(),
        ALL_IMAGES: not request.images,
        OFFICIAL: own,
    } | dict.fromkeys(budget or (), True)
    having = frozenset(name for name, has in possible.items() if has)
    checks = select(request.checks, having)
    if golden.packaged and not any(check.golden for check in checks):
        golden = replace(golden, images=())
    return Opened(
        request,
        artifact,
        manifest,
        checkpoint,
        family,
        tokenizer,
        recipe,
        checks,
        having,
        golden,
        expectation,
        budget,
        runner,
        to_ship,
    )


def _golden_of(checkpoint: Checkpoint, family: Family, tokenizer: Tokenizer) -> GoldenSet:
    """The golden set beside the checkpoint; if nobody has made any, the pictures of the package, whose answers are yet to be given."""
    folder = golden_folder(checkpoint)
    try:
        return load_golden(folder, checkpoint.sha256)
    except MissingGoldenError:
        pictures = [EMBEDDED / "images" / name for name in PACKAGED]
        question, rule = family.prompt.default_question, tokenizer.rule.as_json()
        images = tuple(GoldenImage(path.stem, path, "", "package", question, (), (), "") for path in pictures)
        return GoldenSet(folder / "golden.json", checkpoint.sha256, images, rule, packaged=True)


def _chosen(golden: GoldenSet, globs: tuple[str, ...]) -> GoldenSet:
    if not globs:
        return golden
    names = {image.name: (image.name, image.path.name) for image in golden.images}
    wanted: set[str] = set()
    for glob in globs:
        # a name may look like a glob: odd[1] is itself before it is odd1
        exact = {name for name, spelled in names.items() if glob in spelled}
        matching = exact or {name for name, spelled in names.items() if any(fnmatchcase(s, glob) for s in spelled)}
        if not matching:
            fix = "give --images a glob such as 'square_*'; '?' stands for a comma in a name"
            raise UsageError("no golden image matches", got=glob, expected=", ".join(names), fix=fix)
        wanted |= matching
    return replace(golden, images=tuple(image for image in golden.images if image.name in wanted))


def planned_cases(opened: Opened) -> list[tuple[str, str]]:
    """(check id, case) of everything that a run will give, without running."""
    subjects = subjects_of(opened)
    return [(check.id, case) for check in opened.checks for case in check.cases(subjects)]


def subjects_of(opened: Opened) -> Subjects:
    """What checks have cases of: golden images, parameters of the checkpoint, blocks of the model, tokenizer files."""
    return Subjects(
        tuple(image.name for image in opened.golden.images),
        tuple(parameter.name for parameter in opened.family.parameters()),
        opened.family.blocks(),
        opened.to_ship.cases,
        tuple(dict.fromkeys(opened.request.apps)),
    )
