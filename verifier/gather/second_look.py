"""What is computed only where a first judgement of the evidence asks for it: both need the quantized rung's decoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch

from verifier.audit.run import Audit
from verifier.core.types import Missing
from verifier.families.definition import Decoder, Definition
from verifier.families.samples import Sample
from verifier.gather.opening import Opened
from verifier.ladder.divergence import quantized_tokens
from verifier.ladder.noise import NOISE_TOKENS, rounding_noise_db
from verifier.ladder.quantized import Form, Rounding, build_quantized_decoder
from verifier.measures.evidence import Case


@dataclass(frozen=True)
class QuantizedRung:
    """The eager decoder with the recipe's quantization, built when it is first asked."""

    opened: Opened
    audit: Audit | Missing
    definition: Definition
    sample: Sample

    def rounding_db(self) -> float:
        """What int8 activations cost this checkpoint's decoder on the first tokens of a prompt, as SQNR in dB."""
        rounding = Rounding()
        quantized = build_quantized_decoder(self.opened.family, self._form, rounding)
        ids = torch.tensor([(*self.sample.prompt.before, *self.sample.prompt.after)[:NOISE_TOKENS]])
        return rounding_noise_db(quantized, rounding, self.definition.embed(ids))

    @cached_property
    def _decoder(self) -> Decoder:
        return build_quantized_decoder(self.opened.family, self._form)

    @property
    def _form(self) -> Form:
        return Form(self.opened.recipe, self.opened.artifact, self.audit if isinstance(self.audit, Audit) else None)

    def tokens(self, case: Case, places: Iterable[int]) -> dict[int, int]:
        """The token that the decoder, fed with the program's image tokens, favours at places of an answer, by place. None without image tokens."""
        if case.vision is None or case.logits is None:
            return {}
        favoured = {at: int(case.logits[at].argmax()) for at in places}
        if not favoured:
            return {}
        return quantized_tokens(self._decoder, self.definition, case.sample, case.vision, favoured)
