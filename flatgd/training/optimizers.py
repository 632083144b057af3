"""Optimizers with a train mode, as schedule-free ones: which weights the model holds when.

While such an optimizer trains, the model holds the weights at which gradients are taken; in eval
mode it holds those that are meant to be used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

Mode = Literal["train", "eval"]


def switch(optimizer: Any, mode: Mode) -> None:
    """Put an optimizer into a mode, if it has modes."""
    if callable(to := getattr(optimizer, mode, None)):
        to()


@contextmanager
def weights_for_use(optimizer: Any) -> Iterator[None]:
    """Inside the block the model holds the weights that are meant to be used."""
    switch(optimizer, "eval")
    try:
        yield
    finally:
        switch(optimizer, "train")
