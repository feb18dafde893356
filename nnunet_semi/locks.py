"""Locks of files, which the operating system lets go of when their holder dies."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def knows_no_locks(error: Exception) -> bool:
    """Whether an error says that the file system has no locks, as network file systems without a lock service."""
    return isinstance(error, NotImplementedError) or (isinstance(error, OSError) and error.errno in NO_LOCKS)


@contextmanager
def locked(path: str | os.PathLike[str], wait: bool = False) -> Iterator[bool]:
    """Gives whether this process alone holds the lock now; True, too, where the file system has no locks.

    Args:
        path: of the lock's file, which stays.
        wait: until nobody else holds it.

    Raises:
        OSError: the file cannot be made.
    """
    lock, mine = FileLock(path), True
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        mine = False
    except (NotImplementedError, OSError) as error:
        if not knows_no_locks(error):
            raise
    try:
        yield mine
    finally:
        lock.release()
