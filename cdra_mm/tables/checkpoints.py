"""The checkpoints of a run that is done, which a table no longer needs."""

from __future__ import annotations

from cdra_mm.mm.checkpoints.own_files import OwnFiles
from cdra_mm.mm.launch import load_config

from .jobs import Job

__all__ = ['drop_checkpoints']


def drop_checkpoints(job: Job) -> None:
    """Deletes the checkpoints that the run of a job has written; any other file stays.

    Where the run keeps them and how it names them stands in its config.

    Raises:
        ConfigError: If its config cannot be read any more; nothing is deleted then.
    """
    cfg = load_config(job.task.config, job.option_texts, final_run=job.is_final_run)
    cfg.work_dir = str(job.folder)
    for path in OwnFiles.of_config(cfg).written():
        path.unlink()
