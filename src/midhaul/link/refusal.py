"""Why a device refused a message, in words: the metric `error` of its reply is a number of mh_error.h."""

from __future__ import annotations

# The place in this list is enum mh_error: append, never reorder.
SENTENCES = (
    "nothing was refused",
    "the frame isn't whole or not as docs/wire.md says",
    "its build or its model has no such op",
    "a setting is missing, of another type, or out of range",
    "no model is loaded; send its blob first",
    "its blob has no plan for the slice; compile the blob with it",
    "the op takes no tensor of this name, or has it already",
    "a tensor has another shape or type than its model",
    "the op needs a tensor that another message overwrote; send it along or LOAD it",
    "its rows are kept as features of the frozen layers, so they can't be sent as they came",
    "the rows don't fit into its store; push fewer",
    "its sets of rows come in the order train, test, adapt; push this one anew, then the later ones",
    "its flash didn't take what was written, or can't be erased from there; push the rows anew from train on",
    "a label is none of the model's classes",
    "the blob isn't a sound model of this version; compile it again",
    "the blob's CRC-32 is wrong: it was damaged; send it again",
    "this part of the blob isn't the next; send the blob from its start",
    "the blob is larger than a slot; choose a smaller model or another board",
    "the blob's int8 weights are packed for another kind of core; compile it for this one",
    "its arena is too small for the op; choose a smaller model, fewer rows or another board",
    "no batch is in flight; send FORWARD first",
    "clip and proximal_mu need a blob that keeps the values before the op; compile it with keeps_start",
    "momentum needs a blob that keeps velocities; compile it with momentum",
    "BACKWARD's velocities were overwritten by FIT; LOAD the momentum first",
    "a weight or the loss isn't finite: the training diverged; lower the learning rate",
    "its build only infers; flash one that trains",
)


def sentence(code: int) -> str:
    """Gives what a device's error code says.

    >>> sentence(4)
    'no model is loaded; send its blob first'
    """
    if 0 < code < len(SENTENCES):
        return SENTENCES[code]
    return f"error {code}, which this side doesn't know: update the older one"
