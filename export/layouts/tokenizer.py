"""The tokenizer file of a bundle as others read it, with a padding token that they can name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from prtool.bundle import Bundle
from prtool.errors import ConfigError
from prtool.manifest import TOKENIZER_BYTES
from prtool.runtime.text import PromptTokenizer
from prtool.strict import parse_json


class Padding(NamedTuple):
    """The token that fills up prompts, and its id."""

    token: str
    id: int


NO_PADDING = Padding("", 0)


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """A bundle's tokenizer: the values of its file, and the tokenizer that was made of them, which pads nothing."""

    settings: Mapping[str, Any]
    prompts: PromptTokenizer

    @classmethod
    def of(cls, bundle: Bundle) -> "TokenizerFile | None":
        """The tokenizer of a bundle; None where it has none.

        Raises:
            BundleError: it is damaged, or holds what the exporter does not write.
            EngineUnavailable: the tokenizers library is not installed.
        """
        text = bundle.manifest.text
        if text is None or not text.tokenizer:
            return None
        content = bundle.read(text.tokenizer, TOKENIZER_BYTES)
        prompts = PromptTokenizer.read(bundle.file(text.tokenizer), content, text)
        return cls(parse_json(content), prompts)

    def own_padding(self) -> Padding:
        """The padding of the file itself; raises ConfigError where the vocabulary has its token under another id."""
        found = Padding(str(self.settings["padding"]["pad_token"]), self.prompts.pad_id)
        if self.prompts.library.token_to_id(found.token) != found.id:
            path = self.prompts.path
            raise ConfigError(
                f"{path} pads with {found.token!r} as id {found.id}, which is not that token's; take layout triton, which reads token ids"
            )
        return found

    def special_padding(self) -> Padding:
        """The padding of the file where its token is a special one, else the special token that ends every prompt.

        transformers makes the padding token special: with "!", which open_clip pads with, prompts with an exclamation mark would change.

        Raises:
            ConfigError: prompts end in no special token.
        """
        special = {int(token["id"]): str(token["content"]) for token in self.settings["added_tokens"] if token["special"]}
        for pad_id in (self.prompts.pad_id, *reversed(self.prompts.ids(""))):
            if pad_id in special:
                return Padding(special[pad_id], pad_id)
        raise ConfigError(
            f"{self.prompts.path} pads with id {self.prompts.pad_id}, and neither that nor what ends a prompt is a special token, which transformers "
            "needs; take layout triton, which reads token ids"
        )

    def padded_with(self, padding: Padding) -> dict[str, Any]:
        """The values of the file with another padding."""
        return {**self.settings, "padding": {**self.settings["padding"], "pad_id": padding.id, "pad_token": padding.token}}
