"""The checkpoints of one training, as they lie in their zone; rank 0's business.

step-00000100/manifest.json      what it holds; written last
objects/<digest>.safetensors     a rank's part
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import isnan

from pipelines.console.progress import say
from pipelines.params.train.checkpoints import Checkpoints as Rules
from pipelines.training.checkpoints.manifest import FILENAME, CheckpointManifest, Damaged, unknown_format
from pipelines.training.checkpoints.tensor_files import SUFFIX
from storage.atomic import sweep_temporaries
from storage.digest import DIGEST_LENGTH
from storage.errors import FormatError, LakeError
from storage.lake import OBJECTS, Zone
from storage.named import NamedFiles

_MANIFEST = re.compile(rf"step-(\d{{8,}})/{re.escape(FILENAME)}")
_OBJECT = re.compile(rf"{OBJECTS}/[0-9a-f]{{{DIGEST_LENGTH}}}{re.escape(SUFFIX)}")
_TEMPORARY = re.compile(rf"\.{re.escape(FILENAME)}\.\w{{8}}\.tmp")
_FORMAT_1 = re.compile(r"step-(\d{8,})/state\.json")


def manifest_path(step: int) -> str:
    return f"step-{step:08d}/{FILENAME}"


def kept(scores: Mapping[int, float | None], rules: Rules, *, finished: bool = False) -> set[int]:
    """Which of the checkpoints, step → val loss, stay by the rules. After the training the last ones needn't."""
    last = [] if finished else sorted(scores)[-rules.keep_last :]
    rated = sorted((score, step) for step, score in scores.items() if score is not None and not isnan(score))
    best = [step for _, step in rated[: rules.keep_best]]
    every = [step for step in scores if rules.keep_every and step % rules.keep_every == 0]
    return {*last, *best, *every}


class Retention:
    """Lists, completes and removes checkpoints: those that were there at the first look, and its own. What others write
    to the same folder later stays, and so does every file whose name is none of a checkpoint's. Raises LakeError."""

    def __init__(self, zone: Zone, rules: Rules) -> None:
        self.zone, self.files, self.rules = zone, NamedFiles(zone), rules
        self._known: dict[int, CheckpointManifest] = {}
        self._ours: set[int] = set()  # steps, of damaged checkpoints too
        self._looked = self._warned = False

    def newest_first(self) -> Iterator[CheckpointManifest]:
        """The complete checkpoints; unreadable manifests are passed over, with a word. Raises FormatError."""
        paths, there = self._look()
        steps = sorted(there & self._ours, reverse=True)
        old = sorted(path for path in paths if _FORMAT_1.fullmatch(path))
        if old and not steps:
            with suppress(ValueError, AttributeError):
                raise unknown_format(self.zone.describe(old[-1]), json.loads(self.files.read(old[-1])).get("format"))
        for step in steps:
            try:
                self._known[step] = self._read(step, paths)
            except (Damaged, FileNotFoundError) as error:
                self.pass_over(step, str(error))
        yield from [self._known[step] for step in steps if step in self._known]

    def _look(self) -> tuple[dict[str, int], set[int]]:
        """Path → bytes of every file that is there, and the steps of the complete checkpoints."""
        paths = self.files.paths()
        steps = {int(found[1]) for path in paths if (found := _MANIFEST.fullmatch(path))}
        if not self._looked:
            self._looked, self._ours = True, steps.copy()
        return paths, steps

    def _read(self, step: int, sizes: Mapping[str, int]) -> CheckpointManifest:
        """`sizes`: path → bytes of every file that is there. Raises Damaged, FileNotFoundError, FormatError."""
        what = self.zone.describe(manifest_path(step))
        manifest = CheckpointManifest.decode(self.files.read(manifest_path(step)), what)
        if manifest.step != step:
            raise Damaged(f"{what} is of step {manifest.step}")
        for path, (size, _) in manifest.files.items():
            if sizes.get(path) != size:
                there = "is missing" if path not in sizes else f"has {sizes[path]} bytes"
                raise Damaged(f"{self.zone.describe(path)} {there}, and should have {size} bytes")
        return manifest

    def pass_over(self, step: int, why: str) -> None:
        """Don't count with a damaged checkpoint any more: the next save removes it."""
        self._known.pop(step, None)
        say(
            f"{self.zone.describe(manifest_path(step))}: damaged, passed over; going on from the checkpoint before it, "
            f"if there is one. ({why})"
        )

    def commit(self, manifest: CheckpointManifest) -> None:
        """Make a checkpoint complete, then remove those that don't stay by the rules."""
        if not self._looked:
            self._look()
        self.files.write(manifest_path(manifest.step), manifest.encode())
        self._known[manifest.step] = manifest
        self._ours.add(manifest.step)
        try:
            self.prune()
        except LakeError as error:
            say(f"Old checkpoints could not be removed, which the next save tries again: {error}")

    def prune(self, *, finished: bool = False) -> bool:
        """Remove our checkpoints that don't stay by the rules, manifest first, and objects that no checkpoint names.
        Returns whether nothing is left."""
        scores = {step: manifest.score for step, manifest in self._known.items()}
        stay = kept(scores, self.rules, finished=finished)
        gone = {file for step, manifest in self._known.items() if step not in stay for file in manifest.files}
        self._known = {step: manifest for step, manifest in self._known.items() if step in stay}
        named = {file for manifest in self._known.values() for file in manifest.files}
        paths, there = self._look()
        others = there - self._ours
        for step in there & self._ours - stay:
            self.files.delete(manifest_path(step))
        objects = {path for path in paths if _OBJECT.fullmatch(path)}
        if others:
            self._warn(max(others))
            objects = gone & objects - self._named_by(others, paths)
        for path in objects - named:
            self.files.delete(path)
        return not (self._known or others)

    def _named_by(self, steps: set[int], sizes: Mapping[str, int]) -> set[str]:
        """Files of checkpoints; everything that is there, where one can't be read."""
        try:
            return {file for step in steps for file in self._read(step, sizes).files}
        except (Damaged, FormatError, FileNotFoundError):
            return set(sizes)

    def _warn(self, step: int) -> None:
        if not self._warned:
            self._warned = True
            say(
                f"{self.zone.describe(manifest_path(step))} is another training's, which writes to the same folder. It "
                "stays, and so does what this one does not know; but a restart would go on with the newest checkpoint "
                "of either. Give one of them another train.checkpoints.owner."
            )

    def last(self) -> int | None:
        """The step of the newest complete checkpoint that is known of."""
        return max(self._known, default=None)

    def clear(self) -> None:
        """The training is done: all go but those that stay by the rules, and the folders that are empty then."""
        root = self.zone.root
        if not self.prune(finished=True) or root is None:
            return
        self.zone.sweep_temporaries()
        folders = [root / OBJECTS, *root.glob("step-*")]
        for folder in folders[1:]:
            sweep_temporaries(folder, _TEMPORARY)
        for folder in (*folders, root):
            with suppress(OSError):  # something else lies in it
                folder.rmdir()
