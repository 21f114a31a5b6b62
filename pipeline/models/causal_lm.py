"""Causal language models of transformers, from a local folder: nothing is downloaded and no code of a folder is run.

Shapes: B batch, L positions, C tokens of the vocabulary.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision

CAUSAL_LM = "causal-lm:"
_CONFIG = "config.json"


class CausalLM(nn.Module):
    """A network of transformers as one that maps tokens to logits; its tensors have the names that transformers gives.

    Args:
        network: Of ``AutoModelForCausalLM``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Token ids int64 [B, L] -> logits [B, L, C]."""
        logits_BLC: Tensor = self.network(input_ids=tokens_BL, use_cache=False).logits
        return logits_BLC

    def state_dict(self, *args: Any, **settings: Any) -> Any:
        return self.network.state_dict(*args, **settings)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **settings: Any) -> Any:
        return self.network.load_state_dict(state_dict, *args, **settings)


def fresh_causal_lm(name: str, split: Split) -> nn.Module:
    """An untrained network of the folder's configuration; ValueError where it does not fit the data."""
    transformers = _transformers(name)
    config = _read_config(transformers, name, split)
    try:
        return CausalLM(transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise _unusable(name, error) from error


def load_causal_lm(name: str, split: Split) -> nn.Module:
    """The folder's network with its weights, which are safetensors, in the type that they have there.

    Raises:
        ValueError: No such folder, or one that asks for code or has no safetensors, or does not fit the data.
    """
    transformers = _transformers(name)
    folder, config = _folder(name), _read_config(transformers, name, split)
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{name}: {folder} has no .safetensors; nothing is unpickled, save it with save_pretrained")
    try:
        network, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype="auto",
            output_loading_info=True,
        )
    except Exception as error:  # transformers and safetensors raise many kinds on files of others
        raise _unusable(name, error) from error
    lacking = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if lacking:
        raise ValueError(f"{name}: its weights lack {len(lacking)} tensors, or have others: {', '.join(lacking[:3])}")
    return CausalLM(network).eval()


def says_weights(name: str, weights: str) -> bool:
    """Whether weights that are named beside a folder, or none, are those of the folder itself."""
    return name.startswith(CAUSAL_LM) and (not weights or Path(weights) == Path(name.removeprefix(CAUSAL_LM)))


def _folder(name: str) -> Path:
    folder = Path(name.removeprefix(CAUSAL_LM))
    if not (folder / _CONFIG).is_file():
        raise ValueError(f"{name}: no {folder / _CONFIG}; expected a folder that save_pretrained wrote, which is here")
    return folder


def _read_config(transformers: Any, name: str, split: Split) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(_folder(name), local_files_only=True, trust_remote_code=False)
        text = config.get_text_config()
        vocabulary, longest = int(text.vocab_size), getattr(text, "max_position_embeddings", None)
    except Exception as error:  # whatever a configuration of others makes it raise
        raise _unusable(name, error) from error
    if vocabulary != split.num_classes:
        raise ValueError(
            f"{name}: answers with a vocabulary of {vocabulary}, and {split.spec} has {split.num_classes} classes; when"
            f" the data's ids are its tokens, add classes={vocabulary}"
        )
    if longest is not None and split.input_shape[0] > longest:
        raise ValueError(
            f"{name}: reads at most {longest} tokens, and {split.spec} has {split.input_shape[0]}; shorten"
        )
    return config


def _unusable(name: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{name}: transformers cannot use the folder ({reason[:300]}); no code of it is run")


def _transformers(name: str) -> Any:
    prepare_torchvision()
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{name} needs transformers: pip install 'logitbank[text]'") from error
    transformers.utils.logging.disable_progress_bar()
    return transformers
