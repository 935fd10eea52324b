"""The one table of limits: every number that decides between pass and fail, with its unit, kind, reason and provenance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Unit = Literal[
    "dB",
    "steps",
    "share",
    "full scale",
    "logits",
    "nats",
    "bytes",
    "loops",
    "sd",
    "roundings",
    "absolute",
    "count",
    "ratio",
    "equal",
]
At = Literal["least", "most", "equal"]
Kind = Literal["derived", "physical", "measured", "policy"]
UNIT = 2.0**-24
"""Unit roundoff of fp32: a result rounded to the nearest is off by this share of itself at most. No limit: the unit of some."""


@dataclass(frozen=True)
class Limit:
    """A bound and what it bounds.

    `id` is that of a check, or of a check and one of its measures. `at` says on which side of `value` a measure must be. `kind` says where
    the value comes from: `derived` holds for every correct implementation, `physical` follows from the arithmetic and some stated
    assumption, `measured` was seen on sound artifacts (`seen` says which), `policy` is a choice. `why` gives the reason.
    """

    id: str
    value: float
    unit: Unit
    at: At
    kind: Kind
    why: str
    seen: str = ""

    def admits(self, value: float) -> bool:
        """Whether a measure is inside. This is the only comparison of a measure with a bound; what is not finite is never inside."""
        if not math.isfinite(value):
            return False
        if self.at == "least":
            return value >= self.value
        if self.at == "most":
            return value <= self.value
        return value == self.value

    def of(self, value: float) -> Limit:
        """The same limit with a value that was computed for one case."""
        return replace(self, value=value)


_ROWS: tuple[Limit, ...] = (
    Limit(
        "equal",
        400.0,
        "dB",
        "least",
        "derived",
        "the same calls in the same chunks give the same bits (`kvcache.history`, `.poison`, `.capacity`); 400 dB is the SQNR of equal arrays",
    ),
    Limit(
        "structure.scalars",
        1e-6,
        "ratio",
        "most",
        "physical",
        "a double in the file against one computed here: 32^-1/4 is stored to 16 digits",
    ),
    Limit(
        "mapping.activations",
        100.0,
        "dB",
        "least",
        "physical",
        "both sides are fp32 and only the order of summation differs; it leaves room for more rounding in deeper models",
        "137 dB and more on llava_tiny",
    ),
    Limit(
        "preprocess.pixels",
        1.01,
        "steps",
        "most",
        "physical",
        "one step of 255: a pixel is rounded to whole steps in each of two passes, in either order. A hundredth for the fp32 normalization",
        seen="0.00003 on llava_tiny's golden images and on every drawn picture (Pillow 13). Any other filter 3 and more, a shift by one pixel 21 and more",
    ),
    Limit(
        "preprocess.frame",
        1.0,
        "count",
        "most",
        "derived",
        "pixels: an even number lies within one of every length between 1 and the frame's side",
    ),
    Limit(
        "preprocess.margins", 1e-5, "full scale", "most", "physical", "black is exact but for the fp32 normalization"
    ),
    Limit("preprocess.files", 0, "count", "equal", "derived", "pixels that differ: one decoder reads both"),
    Limit("preprocess.constants", 1e-6, "share", "most", "physical", "a mean or std that is written with seven digits"),
    Limit(
        "weights.tensors.worst_steps",
        0.5 + 8 / 256,
        "steps",
        "most",
        "derived",
        "rounding to the nearest of 4-bit integers up to 8 leaves half a step; a bf16 scale adds up to 2^-8 of the integer. HQQ moves scales "
        "to lessen the sum of errors and may clip: it is held to the recipe's own integers alone",
    ),
    Limit(
        "weights.tensors.scale",
        1e-6,
        "ratio",
        "most",
        "derived",
        "scales of static int8 are computed in fp32 by the exporter and stored as fp32: a few ulps of 6e-8 at most",
    ),
    Limit(
        "weights.tensors.bias",
        3 * 2**-24,
        "ratio",
        "most",
        "derived",
        "an int32 bias is its value over the product of two scales, rounded. The product is rounded when it is stored as fp32, its inverse and the "
        "quotient when they are computed in fp32: beside half a step, three roundings of the quotient, which may be on either side of a middle",
        seen="one of 64 elements of one of 32 random models: a quotient of -10264.5 to 2^-24, stored -10265, recomputed -10264",
    ),
    Limit(
        "weights.derived.factor",
        1e-6,
        "ratio",
        "most",
        "derived",
        "QuickGELU's factor is exact but for the rounding of 1.702 / 255 to fp32",
        "2.4e-8",
    ),
    Limit(
        "weights.quantizer.loss",
        3.0,
        "dB",
        "most",
        "policy",
        "what integers of an unknown quantizer may lose against the nearest known one before they are taken for other weights: half a bit",
        "HQQ and affine on llava_tiny's linears: 0.1 to 0.9 dB apart",
    ),
    Limit(
        "weights.quantizer.few",
        0.01,
        "share",
        "most",
        "policy",
        "of integers of an unknown quantizer that are not the nearest to their weight: a quantizer that makes up for the errors of other weights, as "
        "GPTQ does, moves many, and damaged bytes few",
    ),
    Limit(
        "weights.alike",
        0.5,
        "share",
        "least",
        "measured",
        "correlation below which a constant is no copy of a parameter, where a program has more or fewer constants than parameters. Different "
        "tensors may be as much alike, up to 0.963: only the pairing with the most likeness over all tells those apart",
        "of llava_tiny's 77 copies the class embedding is at 0.87, the embedding table at 0.95, all others at 0.968 and more",
    ),
    Limit(
        "weights.order",
        1e-6,
        "share",
        "most",
        "policy",
        "likeness that a constant loses for each place it stands from where the computation needs it: it orders tensors of equal contents and is "
        "below any difference of contents that fp32 shows",
    ),
    Limit(
        "weights.flat",
        1e-9,
        "ratio",
        "least",
        "policy",
        "norm of a sample about its mean, relative to its largest number, above which the sample varies: fp64 rounding of the mean leaves 1e-16",
    ),
    Limit(
        "layers.kernel",
        1.0,
        "share",
        "most",
        "derived",
        "share of its limit that a result may use. fp32: of the running error bound that each record in `verifier/operators/` and `verifier/backends/` has, in stages "
        "(decision 6): what leaves `rounding.screen` is held against the kernels' own orders, and against a bound that is true of every order; what none decides "
        "is an error. A 4-bit linear beyond it may still keep `layers.kernel.linear`; int8: `layers.kernel.step` and `layers.kernel.share_off`. `layers.constants` has the same limits, and `layers.kernel.linear` alone where the file's own constants keep it: no tie explains a difference then",
        "at most 0.52 of the screen on llava_tiny with AVX-512, which nothing leaves",
    ),
    Limit(
        "layers.kernel.step",
        1.001,
        "steps",
        "most",
        "physical",
        "int8: another order of a sum may tip a tie, by one step; a thousandth of a step for the fp32 arithmetic that makes steps of differences",
    ),
    Limit(
        "layers.kernel.share_off",
        1e-3,
        "share",
        "most",
        "physical",
        "int8: elements that another order of a sum may tip",
        "5.5e-5",
    ),
    Limit(
        "layers.kernel.linear",
        120.0,
        "dB",
        "least",
        "measured",
        "4-bit linears: integers are summed exactly, so only the order of fp32 sums is left and, on other vector units, ties of the activations. "
        "What is further off is summed again in the kernels' own order (decision 6)",
        "exact sums came to 117.6 dB in one of a 7B's 225 linears, and to the same bits in all of llava_tiny's (AVX-512)",
    ),
    Limit(
        "layers.kernel.flushed",
        2.0**-120,
        "absolute",
        "least",
        "physical",
        "no error bound is below this: kernels flush to zero what is subnormal (below 2^-126), also on the way, as XNNPACK's exp does with a "
        "result of 1.4 times 2^-126",
        "a softmax whose logits span 87",
    ),
    Limit(
        "layers.graph.rounding",
        37.0,
        "dB",
        "least",
        "measured",
        "a block keeps this with every activation rounded to int8, an error of 1/12 squared step each; a tipped tie is wrong by a whole step",
        "37 to 44 dB on llava_tiny's linears",
    ),
    Limit(
        "layers.graph.ties",
        3,
        "count",
        "most",
        "measured",
        "ties of a block's activations that fp32's rounding may tip, whatever their number: with `layers.graph.tie_share` this leaves 39 dB for a single "
        "token of 64 numbers, 45 dB for one of 256, 55 dB for a chunk",
        "73 dB on llava_tiny",
    ),
    Limit(
        "layers.graph.tie_share",
        1e-3,
        "share",
        "most",
        "physical",
        "share of the activations of a block that may be tipped besides: as `layers.kernel.share_off`",
    ),
    Limit(
        "layers.graph.tipped",
        6.0,
        "dB",
        "most",
        "measured",
        "what a block may lose beyond what all its ties cost when they are tipped: the runtime's are some of them, and may cancel less; 6 dB are twice "
        "the amplitude",
        "46.6 dB in the worst of 64 blocks of a sound 7B, for 53.8 dB that ties alone would have left",
    ),
    Limit(
        "layers.graph.second_tie",
        16.0,
        "ratio",
        "most",
        "derived",
        "width of a tie before the second linear of a block, in widths before the first: it went through fp32 sums of groups, and a softmax or a gate: "
        "64 roundings instead of 4",
    ),
    Limit(
        "layers.vision.fp32",
        100.0,
        "dB",
        "least",
        "physical",
        "what an fp32 layer of the encoder adds, on the program's own input: both sides are fp32 and only the order of summation differs, as "
        "`mapping.activations`; less where the stream is larger than what is added to it",
        "128.2 dB and more in an optimum-executorch export of llava_tiny",
    ),
    Limit(
        "layers.ranges.clipped",
        0.15,
        "share",
        "most",
        "measured",
        "share of what an int8 range cuts off: three times what clean exports show. Ranges from flat images cut off more than half",
        "at most 0.048, pixels of a photograph brighter than any drawing of the calibration, and 0.0032 elsewhere, over 10 places and 29 golden "
        "images of llava_tiny",
    ),
    Limit(
        "chunks.roundings_per_layer",
        4,
        "count",
        "most",
        "derived",
        "activations become int8 before wq, wk and wv, before wo, before w1 and w3, and before w2; and once more before the head. Logits of other "
        "chunks keep `layers.graph` less 10 log10(4 layers + 1): 33 dB (`kvcache.chunks`, `kvcache.rows` in other chunks, `threads.counts`, `device.host` of "
        "the decoder)",
        "49.0 dB at worst of 94 chunk ends; a sound random model of two narrow layers came to 38.0 dB, which one rounding a layer (39.3 dB) did not allow",
    ),
    Limit(
        "chunks.two_runs",
        10 * math.log10(2),
        "dB",
        "most",
        "derived",
        "two runs whose roundings have nothing to do with each other differ by twice the power of one run's own rounding: this much less than "
        "what rounding costs this checkpoint, where that is measured (decision 6)",
        "28.2 dB of 25.3 dB allowed for a synthetic 7B, at worst of 64 chunk ends in 12 splits",
    ),
    Limit(
        "device.host.vision",
        21.0,
        "dB",
        "least",
        "measured",
        "the smaller of this and the SQNR that calibration recorded for the weakest golden image, minus the cost of one int8 step on 0.1 % of the elements "
        "in every layer: 34 dB for llava_tiny, 17 dB for a synthetic 7B",
        "67 dB with AVX2, 38 dB with AVX-512, 12 dB with a wrong SMOPA; the 7B 21 dB",
    ),
    Limit(
        "kvcache.rows.rotation",
        8.0,
        "roundings",
        "most",
        "derived",
        "roundings of fp32 in a roped key, relative to the largest number of its row, beside two for each position (the angle p x frequency): cosine, "
        "sine, two products and a sum",
        "at most 0.31 of it on llava_tiny",
    ),
    Limit(
        "kvcache.rows.distinct",
        0.5,
        "share",
        "least",
        "policy",
        "rows of the first V cache that differ from the one before, where the tokens do: random tokens may repeat, half of them do not",
    ),
    Limit(
        "embedding.tokens",
        0.51,
        "steps",
        "most",
        "physical",
        "rounding to the nearest of 2^bits levels is off by half a step, and 1 % for fp32 arithmetic; a step is the group's largest magnitude over "
        "2^(bits-1) - 0.5",
    ),
    Limit(
        "embedding.tokens.hqq",
        0.01,
        "steps",
        "most",
        "measured",
        "what fp32 arithmetic may add to the recipe's own error: scales found by HQQ clip what is largest, by as much as pays",
        "1.40 steps of own error in llava_tiny, where a whole step was allowed until an export of it was refused for that",
    ),
    Limit(
        "channels.telling",
        0.1,
        "share",
        "least",
        "policy",
        "spread of a channel, in median spreads, above which its gain and offset are judged: noise of the whole tensor drowns the others",
    ),
    Limit(
        "logits.channels.pivot",
        1e-6,
        "ratio",
        "least",
        "derived",
        "of the largest pivot, in the square root of a Gram matrix: above it, fp64 leaves four digits of a solution",
    ),
    Limit(
        "price.vision.sqnr_db",
        6.0,
        "dB",
        "least",
        "policy",
        "default budget of an int8 tower, for every picture: its noise is a quarter of what tells the picture from others. It is a price, not a "
        "fault: what the tower should compute is `layers.vision`",
        "22.0 dB for the weakest of 29 pictures of llava_tiny, 22.2 dB for a random model of two layers, 11.2 dB for a synthetic 7B",
    ),
    Limit(
        "price.vision.sqnr_db.fp32",
        80.0,
        "dB",
        "least",
        "policy",
        "an fp32 tower costs nothing: 20 dB are left to a deep one below `layers.vision.fp32`, which one layer keeps",
        "122.0 dB for the weakest picture of an optimum-executorch export of llava_tiny",
    ),
    Limit(
        "price.vision.token_sqnr_p10_db",
        3.0,
        "dB",
        "least",
        "policy",
        "as price.vision.sqnr_db, for the weakest tenth of a picture's tokens: noise of half the power",
        "15.1 dB for llava_tiny, 18.8 dB for a random model of two layers",
    ),
    Limit("price.vision.token_sqnr_p10_db.fp32", 70.0, "dB", "least", "policy", "as price.vision.sqnr_db.fp32"),
    Limit(
        "price.vision.channel_gain_change",
        0.5,
        "ratio",
        "most",
        "policy",
        "default budget of an int8 tower: a channel of the projector that is half too large or too small for all pictures; a wrong sign changes its gain by 2",
        "0.026 for llava_tiny, 0.062 for a random model of two layers, 0.31 for a random 7B",
    ),
    Limit("price.vision.channel_gain_change.fp32", 1e-3, "ratio", "most", "policy", "as price.vision.sqnr_db.fp32"),
    Limit(
        "price.vision.channel_offset_change",
        2.0,
        "sd",
        "most",
        "policy",
        "default budget of an int8 tower: what the worst of 4,096 channels is off by at the budget of image tokens. Noise of `price.vision.sqnr_db` is half "
        "the signal, the largest of 4,096 normal numbers is 4, and over few pictures with flat grounds tokens are equal, and so are their errors",
        "0.049 for llava_tiny, 0.151 for a random model of two layers, 0.31 between two exports of it; 1.09 for four pictures and a random 7B, whose tower of 24 "
        "layers is at 12.0 dB",
    ),
    Limit("price.vision.channel_offset_change.fp32", 1e-3, "sd", "most", "policy", "as price.vision.sqnr_db.fp32"),
    Limit(
        "price.layers.vision_db",
        3.0,
        "dB",
        "least",
        "policy",
        "default budget of what a layer of an int8 tower adds to the stream, for every picture: noise of half its power. A stream of large numbers "
        "leaves what a layer adds few of its int8 steps",
        "22.8 dB for the weakest layer and picture of llava_tiny, 27.7 dB for a random model",
    ),
    Limit("price.layers.vision_db.fp32", 80.0, "dB", "least", "policy", "as price.vision.sqnr_db.fp32"),
    Limit(
        "price.layers.profile_db",
        3.0,
        "dB",
        "least",
        "policy",
        "default budget of the stream behind any layer, from the first token on: noise of half its power",
        "18.4 dB for the weakest layer and picture of llava_tiny, 14.4 dB for a random model of two layers",
    ),
    Limit(
        "price.layers.profile_db.fp32",
        80.0,
        "dB",
        "least",
        "policy",
        "as price.vision.sqnr_db.fp32, for layers of the tower",
    ),
    Limit(
        "price.logits.sqnr_db",
        3.0,
        "dB",
        "least",
        "policy",
        "default budget of an answer's logits with groups of 128: noise of half their power. Coarse on purpose: `price.logits.kl_mean` says what it means "
        "for the tokens. Other groups have more or less by `price.groups`",
        "24.7 dB for the weakest answer of llava_tiny (groups of 64), 13.9 dB for a random model (groups of 32)",
    ),
    Limit(
        "price.logits.kl_mean",
        0.2,
        "nats",
        "most",
        "policy",
        "default budget of an answer with groups of 128: eight times what the recipe of ExecuTorch's LLaVA announcement (8da4w, int8 tower, 8-bit embedding) "
        "costs the weakest answer of llava_tiny. Other groups have more or less by `price.groups`",
        "0.026 nats for llava_tiny, 0.002 nats for a random model",
    ),
    Limit(
        "price.logits.kl_p90",
        0.2,
        "nats",
        "most",
        "policy",
        "as price.logits.kl_mean, for nine positions of ten",
        "0.0001 nats for llava_tiny, 0.003 nats for a random model",
    ),
    Limit(
        "price.logits.kl_p99",
        1.0,
        "nats",
        "most",
        "policy",
        "as price.logits.kl_mean, for 99 positions of 100",
        "0.069 nats for llava_tiny, 0.28 nats in an equally clean export of it",
    ),
    Limit(
        "price.logits.top1_agreement",
        0.9,
        "share",
        "least",
        "policy",
        "default budget of the positions that fp32 decides (`price.decided`): one token of ten may be another",
        "446 of 450 for llava_tiny",
    ),
    Limit(
        "price.pixels.kept",
        0.9,
        "share",
        "least",
        "policy",
        "default budget of an app that is named with --app: one answer of ten may be lost to the way in which it prepares pictures",
    ),
    Limit("pixels.compared", 1.0, "count", "least", "policy", "a share of no answers says nothing"),
    Limit(
        "price.decided",
        0.5,
        "share",
        "least",
        "policy",
        "probability of fp32's first choice from which on it counts as decided: it is more likely than all others together. Where fp32 is undecided "
        "another token says nothing, and the KL divergence is the price",
        "a random model decides none of its positions, and half of its tokens are others",
    ),
    Limit(
        "price.logits.channel_gain_change",
        0.75,
        "ratio",
        "most",
        "policy",
        "default budget of a channel behind the final norm: a wrong sign changes its gain by 2, a channel that is gone by 1",
        "0.43 for llava_tiny, 0.095 for a random model",
    ),
    Limit(
        "price.embedding.sqnr_db",
        33.0,
        "dB",
        "least",
        "policy",
        "default budget of a table of 8 bits in groups of 32; 6.02 dB less for every bit less, and 3.4 dB less where a whole row has one scale, as the "
        "largest of many normal numbers is larger. Normal numbers keep 43.7 dB and 19.6 dB in groups of 32; a table with outliers keeps less",
        "45.0 dB for llava_tiny; 33.2 dB for a random table with outliers whose rows have one scale each, where 29.6 dB are allowed",
    ),
    Limit(
        "price.use.text_kept",
        0.0,
        "share",
        "least",
        "policy",
        "no default budget: ExecuTorch's runner encodes the text behind an image as a text of its own, whatever the file. Who ships an app that feeds text "
        "states how many answers have to stay",
        "0.93 for llava_tiny, whose tokenizer puts no blank behind the image",
    ),
    Limit(
        "price.groups",
        128,
        "count",
        "equal",
        "policy",
        "weights of a group that the budgets of logits are made for, those of the announcement's recipe. The noise of a group of G normal numbers goes with "
        "the square of its largest, 2 ln 2G: groups of 32 have 0.75 of the power of groups of 128. The output head counts as much as all that comes before it",
    ),
    Limit(
        "greedy.golden.tie",
        1e-3,
        "logits",
        "most",
        "measured",
        "below this margin fp32 itself may favour the other token on another machine: 137 dB between two fp32 sides and logits of up to 26 make 1e-5",
        "the least margin of llava_tiny's goldens is 0.045",
    ),
    Limit(
        "greedy.images",
        0.5,
        "ratio",
        "least",
        "policy",
        "halfway between a program that does not look at the image, whose logits for two of them are the same, and the reference, at 1: noise only adds to "
        "the distance of two logits",
    ),
    Limit(
        "greedy.rung.ties",
        4.0,
        "sd",
        "most",
        "policy",
        "lead of the quantized model's token over the program's, in standard deviations of what other roundings may move two of its logits by (`chunks.roundings_per_layer`), "
        "up to which the two agree",
    ),
    Limit(
        "calibrate.spreads",
        4.0,
        "ratio",
        "most",
        "policy",
        "a margin in spreads where there are too few deviations to bootstrap",
    ),
    Limit(
        "calibrate.upper_spreads",
        3.0,
        "ratio",
        "most",
        "policy",
        "a margin in spreads of the upper end of the 95 % bootstrap interval",
    ),
    Limit(
        "calibrate.bootstrap_least",
        8,
        "count",
        "least",
        "policy",
        "deviations below which resampling says nothing about a spread: the percentile interval of fewer numbers is much too narrow",
    ),
    Limit(
        "calibrate.worst",
        1.5,
        "ratio",
        "most",
        "measured",
        "a case that moved further than the margin in any variant gets this many times as much: an image may have two answers to a small change",
        "odd_333x335's logits are at 25 dB in three exports and at 19 dB in two others just as clean, where four tokens lose 9 dB each",
    ),
    Limit(
        "calibrate.same_scale",
        1e-3,
        "share",
        "most",
        "policy",
        "difference of two scales of an int8 range that no other picture made: another machine moves the last digits",
    ),
    Limit(
        "calibrate.moved",
        0.1,
        "share",
        "least",
        "policy",
        "int8 ranges in which two exports must differ to tell a spread: a copy, and a copy with a few bytes changed, differ in none or in one",
        "86 to 99 of 110 between the committed export of llava_tiny and its variants, two by two",
    ),
    Limit(
        "calibrate.floor",
        0.05,
        "share",
        "most",
        "policy",
        "a margin is at least this share of the median measured value: a spread of nothing is not knowledge of nothing",
    ),
    Limit(
        "budget.file_bytes",
        1.02,
        "ratio",
        "most",
        "policy",
        "of what was recorded (docs/budgets.md)",
    ),
    Limit(
        "budget.planned_bytes",
        1.02,
        "ratio",
        "most",
        "policy",
        "of what was recorded (docs/budgets.md)",
    ),
    Limit(
        "budget.peak_rss_bytes",
        1.10,
        "ratio",
        "most",
        "measured",
        "of what was recorded, on an idle machine (docs/budgets.md)",
        "peaks differed by 0.3 %",
    ),
    Limit(
        "budget.prefill_loops",
        2.0,
        "ratio",
        "most",
        "measured",
        "of what was recorded, on an idle machine (docs/budgets.md)",
        "a factor of 1.9 idle, 3.6 on a busy machine",
    ),
    Limit(
        "budget.decode_loops",
        2.0,
        "ratio",
        "most",
        "measured",
        "of what was recorded, on an idle machine (docs/budgets.md)",
        "a factor of 1.9 idle, 3.6 on a busy machine",
    ),
    Limit(
        "session.decoder_steps",
        4.0,
        "steps",
        "most",
        "measured",
        "pixels of one JPEG by stb_image and by Pillow, both resized: one pixel may be off by so many steps of 255; more only for `session.decoder_share`",
        "at most 4 on 120 photographs, up to 27 in the last columns of one with 4:2:2",
    ),
    Limit(
        "session.decoder_share",
        0.99,
        "share",
        "least",
        "policy",
        "share of the pixels that `session.decoder_steps` holds for: the last columns of a JPEG with 4:2:2 are left out",
    ),
    Limit(
        "session.decoder_mean",
        0.5,
        "steps",
        "most",
        "measured",
        "mean of these differences over a picture: another path is further away",
        "at most 0.26 on 120 photographs",
    ),
    Limit(
        "compare.file_bytes",
        0.02,
        "share",
        "most",
        "policy",
        "loss of a candidate against its baseline, unless --budget says otherwise",
    ),
    Limit("compare.planned_bytes", 0.02, "share", "most", "policy", "as compare.file_bytes"),
    Limit("compare.peak_rss_bytes", 0.05, "share", "most", "policy", "as compare.file_bytes"),
    Limit("compare.prefill_loops", 0.10, "share", "most", "policy", "as compare.file_bytes"),
    Limit("compare.decode_loops", 0.10, "share", "most", "policy", "as compare.file_bytes"),
    Limit(
        "compare.file_bytes.noise",
        0.001,
        "share",
        "most",
        "physical",
        "a file's size depends on alignment: such a change says nothing",
    ),
    Limit("compare.planned_bytes.noise", 0.0, "share", "most", "derived", "a plan is made by the same code every time"),
    Limit(
        "compare.peak_rss_bytes.noise",
        0.02,
        "share",
        "most",
        "measured",
        "such a change says nothing",
        "one file in five runs on two AVX2 cores (docs/budgets.md)",
    ),
    Limit(
        "compare.prefill_loops.noise",
        0.05,
        "share",
        "most",
        "measured",
        "such a change says nothing",
        "one file in five runs on two AVX2 cores lay within 5 % (docs/budgets.md)",
    ),
    Limit("compare.decode_loops.noise", 0.05, "share", "most", "measured", "as compare.prefill_loops.noise"),
    Limit(
        "compare.uncalibrated",
        1.0,
        "dB",
        "most",
        "measured",
        "change of an SQNR whose recipe has no bands that says nothing; three times as much is the budget",
        "the largest rms spread of llava_tiny's bands, of logits",
    ),
    Limit(
        "compare.uncalibrated.logits.kl_p90",
        0.01,
        "nats",
        "most",
        "policy",
        "as compare.uncalibrated: a hundredth of a nat is a hundredth of the probability of a token",
        "0.00003 nats between the variants of llava_tiny",
    ),
    Limit(
        "compare.uncalibrated.logits.top1_agreement",
        0.01,
        "share",
        "most",
        "policy",
        "as compare.uncalibrated: one position of a hundred",
        "0.003 between the variants of llava_tiny",
    ),
    Limit(
        "compare.spreads",
        2.0,
        "ratio",
        "most",
        "policy",
        "change of a calibrated metric that says nothing, in spreads of equally clean files: 95 % of them lie within two",
    ),
    Limit(
        "compare.weights",
        0.05,
        "dB",
        "most",
        "policy",
        "a change of SQNR against the checkpoint that counts, in the mean of all quantized tensors; bytes do not vary by themselves, but a "
        "calibration on another machine moves a bias",
    ),
    Limit(
        "runner.close",
        0.02,
        "share",
        "most",
        "physical",
        "`python -m runner`: of the largest expected number; int8 results may be one step of some hundred off where a tie is rounded",
    ),
    Limit(
        "runner.few",
        1e-3,
        "share",
        "most",
        "physical",
        "`python -m runner`: elements that may be further off than runner.close: as layers.kernel.share_off",
    ),
    Limit(
        "tokenizer.different",
        0,
        "count",
        "most",
        "derived",
        "ids are integers: a text has the checkpoint's, or those that the format of the file explains",
    ),
)

_ULPS = (
    "one-node programs on ExecuTorch 1.5.1, x86-64 with AVX-512, 262,144 values (tests/runners/test_operator_bounds.py)"
)
_ROUNDINGS: tuple[Limit, ...] = (
    Limit(
        "rounding.screen",
        4.0,
        "roundings",
        "most",
        "physical",
        "First stage of a sum of K products: 4 (sqrt K + 1) roundings, where they are independent. Not true of many addends of one sign: "
        "what lies beyond is held against the kernels' own orders, and against K roundings, which no order exceeds",
        "0.52 of it at most on llava_tiny; a row of 768 attention weights of one sign came to 1.24",
    ),
    Limit(
        "rounding.XNNReciprocalSquareRoot",
        6.0,
        "roundings",
        "most",
        "physical",
        "Estimate and Newton steps, a few ulps (2 roundings each)",
        f"1.9; {_ULPS}",
    ),
    Limit(
        "rounding.XNNSquareRoot",
        4.0,
        "roundings",
        "most",
        "physical",
        "AVX-512 and NEON multiply by a reciprocal root, which is not rounded correctly",
        f"2.2; {_ULPS}",
    ),
    Limit(
        "rounding.XNNSigmoid",
        8.0,
        "roundings",
        "most",
        "physical",
        "exp by a polynomial of few ulps, then a sum and a division",
        f"4.3; {_ULPS}",
    ),
    Limit(
        "rounding.XNNGelu",
        8.0,
        "roundings",
        "most",
        "physical",
        "As a share of x: (1 + erf) / 2 is off by a few roundings of 1 where it is small, and is multiplied by x",
        f"3.0; {_ULPS}",
    ),
    Limit(
        "rounding.XNNTanh",
        16.0,
        "roundings",
        "most",
        "physical",
        "A rational function, or expm1 and a division, by instruction set",
        f"4.7; {_ULPS}",
    ),
    Limit(
        "rounding.XNNExp",
        6.0,
        "roundings",
        "most",
        "physical",
        "A polynomial of few ulps; 2 abs(x) more for the product of x with log2(e) are counted apart",
        f"3.1 for abs(x) up to 1, 65 at 88; {_ULPS}",
    ),
    Limit(
        "rounding.XNNSin",
        8.0,
        "roundings",
        "most",
        "physical",
        "A rational function of the angle less whole turns; 1.5 abs(x) more for the turns that are taken off are counted apart",
        f"3.8 for abs(x) up to 3.2; {_ULPS}",
    ),
    Limit("rounding.XNNCos", 8.0, "roundings", "most", "physical", "As the sine", f"3.8 for abs(x) up to 3.2; {_ULPS}"),
    Limit(
        "rounding.XNNHardswish",
        4.0,
        "roundings",
        "most",
        "derived",
        "As a share of x: a sum, two products and the rounding of a sixth",
        f"1.5; {_ULPS}",
    ),
    Limit("rounding.XNNSquare", 1.0, "roundings", "most", "derived", "One product", f"1.0; {_ULPS}"),
    Limit(
        "rounding.XNNSoftmax",
        16.0,
        "roundings",
        "most",
        "physical",
        "exp of an addend and exp in the sum, reciprocal, product: a few ulps each. The sum, and the rounding of x - max, are counted apart",
        f"0.6 of the whole bound; {_ULPS}",
    ),
    Limit(
        "rounding.aten::rsqrt",
        3.0,
        "roundings",
        "most",
        "derived",
        "A root and a division, both rounded correctly, and the interpreter's own rounding",
        f"1.5; {_ULPS}",
    ),
    Limit(
        "rounding.aten::sigmoid",
        6.0,
        "roundings",
        "most",
        "physical",
        "exp of a C library (1 ulp, 2 roundings), a sum, a division and the interpreter's own rounding",
        f"2.3; {_ULPS}",
    ),
    Limit(
        "rounding.aten::_softmax",
        12.0,
        "roundings",
        "most",
        "physical",
        "exp of a C library (1 ulp) in addend and sum, the rounding of both, a division and the interpreter's own rounding",
        f"0.4 of the whole bound; {_ULPS}",
    ),
    Limit(
        "rounding.llama::custom_sdpa",
        16.0,
        "roundings",
        "most",
        "physical",
        "Vectorized exp of 2 ulps in addend and sum, a division; the sums are counted apart",
        "0.3 of the whole bound on llava_tiny",
    ),
)
"""What functions may be off by, in units of fp32's roundoff, 2^-24: `verifier.operators.rounding.units` reads them."""

LIMITS: dict[str, Limit] = {row.id: row for row in (*_ROWS, *_ROUNDINGS)}


def stated(id: str, value: float, unit: Unit, at: At) -> Limit:
    """A limit whose value the file, its configuration or a record of this release states."""
    return Limit(id, value, unit, at, "policy", "stated by the file, its configuration or a record")


def limit(id: str) -> Limit:
    """The row of the table. Raises `KeyError` for an id that is not in it."""
    return LIMITS[id]
