"""What can be wrong with a merge, one type for each, so that a caller can tell them apart."""


class MergeError(Exception):
    """A merge that cannot be made."""


class RecipeError(MergeError):
    """The recipe asks for something that is not there, not supported or not possible."""


class OutputError(MergeError):
    """The output folder must not be replaced, or another merge is writing it."""


class WriteError(MergeError):
    """The disk did not take the output."""


class SpaceError(MergeError):
    """Not enough room on the disk."""


class ResumeError(MergeError):
    """There is no unfinished merge that this one could go on with."""


class InputError(MergeError):
    """A model that a merge reads is missing, damaged or does not go with the others."""


class FormatError(InputError):
    """Not a safetensors file, or a broken one."""


class ChecksumError(InputError):
    """A file is not what its manifest says."""


class MissingTensorError(InputError):
    """A tensor that one model has and another lacks."""


class ShapeError(InputError):
    """A tensor of another shape than in the other models."""


class DtypeError(InputError):
    """A tensor of a type that cannot be merged."""


class NotFiniteError(InputError):
    """A tensor that holds NaN or infinity, or whose merge would."""


class TokenizerError(InputError):
    """Tokenizers that give the same row of the embeddings to different tokens."""


class ArchitectureError(InputError):
    """Models of different architectures."""


class AdapterError(InputError):
    """A LoRA adapter that cannot be added to its model."""
