"""The options that the operator's verbs share, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pilotfish.operator.api import Api
from pilotfish.operator.errors import OperatorError, describe
from pilotfish.operator.kubeconfig import load_context
from pilotfish.operator.replicas import SYSTEM_NAMESPACE


def add_cluster_options(parser: argparse.ArgumentParser, namespace_help: str) -> None:
    add = parser.add_argument
    add("--kubeconfig", type=Path, metavar="FILE", help="instead of KUBECONFIG and ~/.kube/config")
    add("--context", default="", metavar="NAME", help="of the kubeconfig, instead of the current one")
    add("-n", "--namespace", default="", help=namespace_help)
    add(
        "--system-namespace",
        default=SYSTEM_NAMESPACE,
        metavar="NAMESPACE",
        help="of the control plane (default %(default)s)",
    )


def open_api(given: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Api:
    """The cluster that the options name. Raises OperatorError."""
    return Api(load_context(environment, Path.home(), given.context, given.kubeconfig))


def reporting(run: Callable[[], int]) -> int:
    """The exit status of `run`; 1, with the error on stderr, when it cannot answer."""
    try:
        return run()
    except OperatorError as error:
        print(describe(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # as a shell says it of SIGINT
    except BrokenPipeError:
        # `| head` has seen enough; without this Python complains once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
