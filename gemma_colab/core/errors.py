"""The errors a beginner may meet. Each message names the thing, its value, the limit, and the remedy."""


class GemmaColabError(Exception):
    """Base of all errors of this package. A notebook shows its one sentence instead of a traceback, the command line exits with `status`."""

    status = 4

    def _render_traceback_(self):  # IPython's hook for exceptions that explain themselves
        return [f"{type(self).__name__}: {self}"]


class DatasetError(GemmaColabError):
    """A file or a row of a dataset can't be used."""

    status = 3


class BlockedError(DatasetError):
    """A dataset was read, but its report says that training on it makes no sense. `report` says why."""

    def __init__(self, message: str, report):
        super().__init__(message)
        self.report = report


class SettingsError(GemmaColabError):
    """A setting has an impossible value."""


class WorkspaceError(GemmaColabError):
    """The workspace lacks an earlier step, or can't be written."""


class ModelError(GemmaColabError):
    """A model can't be named, found, downloaded or loaded."""


class TrainingError(GemmaColabError):
    """A training run can't go on: its loss is no number, or the GPU's memory does not suffice. `log_history`: what it logged."""

    status = 2

    def __init__(self, message: str, log_history: list[dict] = ()):
        super().__init__(message)
        self.log_history = list(log_history)
