"""Forms of tokenizers that people have: each is right, or is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verifier.core.errors import CheckpointError
from verifier.families.checkpoint import EMBEDDED, Checkpoint, read_json
from verifier.families.llava.geometry import read_geometry
from verifier.families.llava.prompt import DEFAULT_QUESTION, PROMPT
from verifier.families.prompts import caption_prompt
from verifier.families.tokens.agreement import (
    compare_with_second,
    compare_with_transformers,
    conversations,
    open_tokenizer,
)
from verifier.families.tokens.records import Mark, described
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.faults.tokenizer_forms import as_transformers_4, rewrite

FILES = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")
BLANK = "\u2581"
Folder = Callable[[str], Path]


@pytest.fixture
def form(tmp_path: Path) -> Folder:
    """A folder with llava_tiny's tokenizer, in its `own` form or in the `published` one of the 7B."""

    def make(name: str = "own") -> Path:
        for file in FILES:
            shutil.copy(EMBEDDED / file, tmp_path / file)
        if name == "published":
            as_transformers_4(tmp_path)
        return tmp_path

    return make


def opened(folder: Path) -> Tokenizer:
    """The tokenizer as the gate opens it, all comparisons made."""
    config = read_json(folder / "config.json", limit_bytes=1 << 20)
    tokenizer = open_tokenizer(Checkpoint(folder, read_geometry(config), (), config))
    assert compare_with_transformers(tokenizer) > 300
    return tokenizer


def set_pre_tokenizer(folder: Path, **pre_tokenizer: object) -> None:
    """Another Metaspace, and no normalizer."""
    made = {"type": "Metaspace", "replacement": BLANK, "split": False} | pre_tokenizer
    rewrite(folder / "tokenizer.json", lambda data: data.update(normalizer=None, pre_tokenizer=made))


def set_image(folder: Path, **flags: object) -> None:
    """Other flags of the added token `<image>`."""

    def change(data: dict[str, Any]) -> None:
        for token in data["added_tokens"]:
            token.update(flags if token["content"] == "<image>" else {})

    rewrite(folder / "tokenizer.json", change)


@pytest.mark.parametrize(("name", "behind"), [("own", ()), ("published", (BLANK,))])
def test_what_stands_behind_the_image_is_read(form: Folder, name: str, behind: tuple[str, ...]) -> None:
    """A lone blank in the published form, nothing in the other; the rule says which."""
    tokenizer = opened(form(name))
    blank = tokenizer.encode("\n")[:1]
    assert caption_prompt(tokenizer, PROMPT, DEFAULT_QUESTION).after[:2] == tuple(
        [*(blank if behind else ()), 13, 1003][:2]
    )
    assert tokenizer.rule.behind_image == tokenizer.rule.behind_end == (*behind, "<0x0A>")
    assert tokenizer.rule.at_start == (BLANK, "<0x0A>")
    assert tokenizer.rule.bos


def test_published_ids_are_those_of_the_7b_form(form: Folder) -> None:
    """The ids around the image that transformers 4, ExecuTorch's exporter and its C++ tokenizers make: blank, image, blank, newline."""
    prompt = caption_prompt(opened(form("published")), PROMPT, DEFAULT_QUESTION)
    assert (*prompt.before[-1:], *prompt.after[:2]) == (936, 936, 13)


@pytest.mark.parametrize("name", ["own", "published"])
def test_without_tokenizer_model_merges_are_the_second_encoder(form: Folder, name: str) -> None:
    """tokenizer.json alone: its merges, applied here, give the ids of Hugging Face's library, which are those of SentencePiece."""
    with_model = opened(form(name))
    texts = [with_model.encode_parts(parts) for parts in conversations()]
    (with_model.files.folder / "tokenizer.model").unlink()
    alone = opened(with_model.files.folder)
    assert "merges" in alone.second.name
    assert "SentencePiece" in with_model.second.name
    assert [alone.encode_parts(parts) for parts in conversations()] == texts


def test_byte_level_tokenizer_has_a_second_encoder(form: Folder) -> None:
    """GPT-2's and Llama 3's kind, made here: no tokenizer.model, letters for bytes, a pattern that cuts."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = form()
    (folder / "tokenizer.model").unlink()
    made = Tokenizer(models.BPE(ignore_merges=True))
    cut = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1022, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator([path.read_text() for path in Path(__file__).parent.glob("*.py")], trainer)
    made.add_special_tokens([AddedToken(text, normalized=False) for text in ("<s>", "</s>", "<image>")])
    made.save(str(folder / "tokenizer.json"))
    image = made.token_to_id("<image>")
    rewrite(folder / "config.json", lambda data: data.update(image_token_index=image))
    tokenizer = opened(folder)
    assert tokenizer.rule.behind_image == ("Ċ",)
    assert not tokenizer.rule.bos


def test_swapped_pieces_are_named_with_the_text(form: Folder) -> None:
    """tokenizer.json and tokenizer.model of two releases: nobody can tell which is right."""
    folder = form()

    def swap(data: dict[str, Any]) -> None:
        ids = data["model"]["vocab"]
        ids["▁A"], ids["▁a"] = ids["▁a"], ids["▁A"]

    rewrite(folder / "tokenizer.json", swap)
    with pytest.raises(CheckpointError) as refused:
        opened(folder)
    said = str(refused.value)
    assert "two tokenizers make different ids of 'USER: <image>" in said
    assert (
        "▁A S S I by Hugging Face's tokenizers on tokenizer.json, ▁a S S I by SentencePiece on tokenizer.model" in said
    )


def test_tokenizer_model_alone_is_refused_with_both_readings(form: Folder) -> None:
    """transformers 5.23 makes other ids of it than SentencePiece: named with a text, and what to do."""
    folder = form()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError) as refused:
        opened(folder)
    said = str(refused.value)
    assert "tokenizer.model alone is read in two ways, for example 'Describe the image.'" in said
    assert "D es c ri b e by transformers' AutoTokenizer" in said
    assert "▁D es c ri b e by SentencePiece" in said
    assert "copy tokenizer.json" in said


@pytest.mark.parametrize(
    ("scheme", "behind"), [("first", ("<0x0A>",)), ("always", (BLANK, "<0x0A>"))], ids=["first", "always"]
)
def test_metaspace_scheme_decides(form: Folder, scheme: str, behind: tuple[str, ...]) -> None:
    """`prepend_scheme` is the rule of the pre-tokenizer."""
    folder = form()
    set_pre_tokenizer(folder, prepend_scheme=scheme)
    assert opened(folder).rule.behind_image == behind


def test_metaspace_never_parts_from_sentencepiece(form: Folder) -> None:
    """No blank at the start, where tokenizer.model puts one: both named. Without tokenizer.model there is nothing against it."""
    folder = form()
    set_pre_tokenizer(folder, prepend_scheme="never")
    with pytest.raises(CheckpointError, match=r"two tokenizers make different ids of 'Describe the image\.'"):
        opened(folder)
    (folder / "tokenizer.model").unlink()
    assert opened(folder).rule.at_start == ("<0x0A>",)


@pytest.mark.parametrize("name", ["own", "published"])
@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}])
def test_image_token_that_eats_blanks(form: Folder, name: str, flags: dict[str, bool]) -> None:
    """`lstrip` and `rstrip` of the added token are Hugging Face's, blanks and newline beside the image included."""
    folder = form(name)
    set_image(folder, **flags)
    if name == "published":
        decoder = {"added_tokens_decoder": {}}
        rewrite(folder / "tokenizer_config.json", lambda data: data.update(decoder))
    tokenizer = opened(folder)
    newline = tokenizer.encode("\n")[-1]
    prompt = caption_prompt(tokenizer, PROMPT, DEFAULT_QUESTION)
    assert (newline in prompt.after) is ("rstrip" not in flags)
    assert (tokenizer.piece(prompt.before[-1]) == BLANK) is ("lstrip" not in flags)


@pytest.mark.parametrize("flag", ["single_word", "normalized"])
def test_image_token_that_depends_on_its_neighbours_is_refused(form: Folder, flag: str) -> None:
    """Such a token may not be found at all."""
    folder = form()
    set_image(folder, **{flag: True})
    with pytest.raises(CheckpointError, match="whether <image> is found depends on the text beside it"):
        opened(folder)


def test_image_token_with_another_id_than_the_model_is_refused(form: Folder) -> None:
    """tokenizer and config.json of two checkpoints."""
    folder = form()
    rewrite(folder / "config.json", lambda data: data.update(image_token_index=1025))
    with pytest.raises(CheckpointError, match=r"(?s)different image tokens.*<image> is 1024.*image_token_index 1025"):
        opened(folder)


def test_image_token_with_another_id_in_all_files(form: Folder) -> None:
    """The id is the file's: `<image>` behind `<pad>`."""
    folder = form()

    def swap(data: dict[str, Any]) -> None:
        image, pad = data["added_tokens"][-2:]
        image["content"], pad["content"] = pad["content"], image["content"]

    rewrite(folder / "tokenizer.json", swap)
    rewrite(folder / "config.json", lambda data: data.update(image_token_index=1025))
    tokenizer = opened(folder)
    assert tokenizer.image_id == 1025
    assert tokenizer.encode_parts(["a", Mark.IMAGE])[-1] == 1025


def test_image_token_of_another_spelling(form: Folder) -> None:
    """The processor's word for it."""
    folder = form()
    set_image(folder, content="<picture>")
    rewrite(folder / "processor_config.json", lambda data: data.update(image_token="<picture>"))
    tokenizer = opened(folder)
    assert tokenizer.spelled(["a ", Mark.IMAGE]) == "a <picture>"
    assert tokenizer.image_id == 1024


def test_image_token_that_no_file_has_is_refused(form: Folder) -> None:
    """Its letters would be text."""
    folder = form()
    rewrite(folder / "tokenizer.json", lambda data: data.update(added_tokens=data["added_tokens"][:3]))
    with pytest.raises(CheckpointError, match="the tokenizer has no <image>"):
        opened(folder)


def test_added_tokens_of_the_config_count(form: Folder) -> None:
    """tokenizer.json without `<image>`, tokenizer_config.json with it: as transformers adds it."""
    folder = form("published")
    rewrite(folder / "tokenizer.json", lambda data: data.update(added_tokens=data["added_tokens"][:3]))
    assert opened(folder).image_id == 1024


@pytest.mark.parametrize(
    ("config", "post_processor", "named"),
    [
        ({"add_bos_token": False}, "kept", "add_bos_token is false"),
        ({"add_bos_token": True}, "none", "add_bos_token is true"),
        ({"add_bos_token": True, "add_eos_token": True}, "kept", "add_eos_token is true"),
    ],
)
def test_files_that_contradict_each_other_about_bos_are_refused(
    form: Folder, config: dict[str, bool], post_processor: str, named: str
) -> None:
    """Releases of transformers go by one or by the other."""
    folder = form()
    rewrite(folder / "tokenizer_config.json", lambda data: data.update(config))
    if post_processor == "none":
        rewrite(folder / "tokenizer.json", lambda data: data.update(post_processor=None))
    with pytest.raises(CheckpointError, match=rf"(?s)contradict each other.*{named}"):
        opened(folder)


def test_prompt_without_bos_is_the_files_word(form: Folder) -> None:
    """No post-processor, and no file that says otherwise."""
    folder = form()
    rewrite(folder / "tokenizer.json", lambda data: data.update(post_processor=None))
    tokenizer = opened(folder)
    assert not tokenizer.rule.bos
    assert caption_prompt(tokenizer, PROMPT, DEFAULT_QUESTION).before[0] != tokenizer.bos_id


def test_text_that_ends_with_eos_is_refused(form: Folder) -> None:
    """A prompt that is over asks nothing."""
    folder = form()

    def close(data: dict[str, Any]) -> None:
        data["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
        data["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}

    rewrite(folder / "tokenizer.json", close)
    with pytest.raises(CheckpointError, match=r"(?s)adds tokens around every text.*\['</s>'\] at the end"):
        opened(folder)


@pytest.mark.parametrize("name", ["own", "published"])
def test_tokenizer_config_may_be_missing(form: Folder, name: str) -> None:
    """tokenizer.json says enough: BOS and EOS by config.json."""
    folder = form(name)
    (folder / "tokenizer_config.json").unlink()
    tokenizer = opened(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.rule.bos) == (1, 2, True)


def test_truncation_in_the_file_cuts_nothing(form: Folder) -> None:
    """Some files were saved with it."""
    folder = form()
    cut = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    rewrite(folder / "tokenizer.json", lambda data: data.update(truncation=cut))
    assert len(opened(folder).encode("word " * 20)) >= 20


def test_form_that_nothing_confirms_is_refused(form: Folder) -> None:
    """A normalizer that no second encoder carries out."""
    folder = form()
    bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    rewrite(folder / "tokenizer.json", lambda data: data.update(normalizer=bert | {"lowercase": True}))
    with pytest.raises(CheckpointError, match=r"(?s)no second encoder can confirm.*the normalizer BertNormalizer"):
        opened(folder)


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("tokenizer.json", "{", "tokenizer.json is not JSON"),
        ("tokenizer.json", '{"version": "1.0"}', "cannot be read by Hugging Face's tokenizers"),
        ("tokenizer.json", "[" * 100_000, "tokenizer.json is not JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json is not a JSON object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 1}}', "added tokens cannot be read"),
        ("tokenizer.model", "no model", "tokenizer.model is not a SentencePiece model"),
    ],
)
def test_damaged_file_is_named(form: Folder, file: str, text: str, named: str) -> None:
    """No traceback for a stranger's file."""
    folder = form()
    (folder / file).write_text(text)
    with pytest.raises(CheckpointError, match=named):
        opened(folder)


def test_recorded_rule_is_compared(form: Folder) -> None:
    """Golden data and manifest of one form are those of another tokenizer for the other; nothing recorded is the old releases' rule."""
    own = Tokenizer(form()).rule
    recorded = json.loads(json.dumps(own.as_json()))
    published = Tokenizer(form("published")).rule
    assert own.same_prompt(recorded)
    assert own.same_prompt(None)
    assert not published.same_prompt(recorded)
    assert not published.same_prompt(None)
    assert described(published.as_json()) == f"BOS in front, a newline after the image is {BLANK} <0x0A>"


def test_second_encoder_is_asked_a_few_hundred_texts() -> None:
    """What agreement rests on."""
    assert compare_with_second(Tokenizer(EMBEDDED)) > 300
