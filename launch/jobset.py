r"""Runs a command on GKE: fills in a JobSet and hands it to kubectl.

python -m launch.jobset apply --name=ppl --image=IMAGE --bucket=MY-BUCKET \
    --accelerator=tpu-v5-lite-podslice --topology=4x4 --chips_per_node=4 \
    python -m ppl_jax.main --config=configs/quickstart.py \
    --workdir=/bucket/runs/gke

Actions: apply, status, logs, delete; only apply takes a command. With
--topology it is TPU slices (jobset_tpu.yaml), with --nodes GPU nodes
(jobset_gpu.yaml). The bucket is seen as /bucket; when a pod fails or is
preempted all start again, and ppl_jax.main goes on from its last checkpoint
there. --dry_run prints each kubectl command and what would be handed to it.
"""

import json
import math
import pathlib
import re
import shlex
import shutil
import string
import subprocess
import sys

from absl import app, flags

_NAME = flags.DEFINE_string("name", None, "Of the JobSet.")
_NAMESPACE = flags.DEFINE_string("namespace", "default", "Of Kubernetes.")
_IMAGE = flags.DEFINE_string("image", None, "Built from launch/Dockerfile.")
_BUCKET = flags.DEFINE_string(
  "bucket", None, "Cloud Storage bucket with hierarchical namespace."
)
_SERVICE_ACCOUNT = flags.DEFINE_string(
  "service_account", "default", "Of Kubernetes, that may use the bucket."
)
_ACCELERATOR = flags.DEFINE_string(
  "accelerator",
  None,
  "GKE's name of it, such as tpu-v5-lite-podslice or nvidia-h100-80gb.",
)
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "TPU: chips of a slice, such as 4x4 or 2x2x4."
)
_CHIPS = flags.DEFINE_integer(
  "chips_per_node", 4, "TPU: chips of one machine.", lower_bound=1
)
_SLICES = flags.DEFINE_integer("slices", 1, "TPU: slices.", lower_bound=1)
_NODES = flags.DEFINE_integer("nodes", None, "GPU: machines.", lower_bound=1)
_GPUS = flags.DEFINE_integer(
  "gpus_per_node", 8, "GPU: of one machine.", lower_bound=1
)
_SPOT = flags.DEFINE_bool("spot", False, "Use spot nodes.")
_RESTARTS = flags.DEFINE_integer(
  "restarts", 10, "How often to start all pods again.", lower_bound=0
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print, and run nothing.")

_PORT = 8482
_FOLDER = pathlib.Path(__file__).parent


def manifest(command: list[str]) -> str:
  """Returns the YAML of the JobSet that the flags describe.

  Args:
    command: program and arguments that every pod runs.

  Raises:
    ValueError: flags are missing or do not fit each other.
  """
  for flag in (_IMAGE, _BUCKET, _ACCELERATOR):
    if not flag.value:
      raise ValueError(f"apply needs --{flag.name}. See --help.")
  if not command:
    raise ValueError(
      "apply needs a command after the flags, such as: python -m ppl_jax.main"
      " --config=configs/quickstart.py --workdir=/bucket/runs/gke"
    )
  if bool(_TOPOLOGY.value) == bool(_NODES.value):
    raise ValueError(
      "One of --topology (TPU) and --nodes (GPU) must be given, got"
      f" {'both' if _NODES.value else 'neither'}."
    )
  bucket = _BUCKET.value.removeprefix("gs://").rstrip("/")
  if "/" in bucket:
    raise ValueError(
      f"--bucket must be a bucket's name, got {bucket!r}. Name the folder in"
      " the command's --workdir=/bucket/FOLDER."
    )
  # Kubernetes puts in the value of $(NAME), and makes one dollar of two.
  command = [word.replace("$", "$$") for word in command]
  values = {
    "NAME": _NAME.value,
    "NAMESPACE": _NAMESPACE.value,
    "IMAGE": _IMAGE.value,
    "BUCKET": bucket,
    "SERVICE_ACCOUNT": _SERVICE_ACCOUNT.value,
    "RESTARTS": _RESTARTS.value,
    "COMMAND": command,
  }
  fill = _tpu if _TOPOLOGY.value else _gpu
  template, selector, more = fill(command)
  if _SPOT.value:
    selector["cloud.google.com/gke-spot"] = "true"
  values |= {"NODE_SELECTOR": selector} | more
  text = string.Template((_FOLDER / template).read_text())
  return text.substitute({k: json.dumps(v) for k, v in values.items()})


def _tpu(_):
  topology, chips = _TOPOLOGY.value, _CHIPS.value
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology):
    raise ValueError(
      f"--topology must be like 4x4 or 2x2x4, got {topology!r}. GKE's page on"
      " TPU configurations lists those that there are."
    )
  size = math.prod(map(int, topology.split("x")))
  if size % chips:
    raise ValueError(
      "--topology must be whole machines of --chips_per_node chips, got"
      f" {topology}, {size} chips, and {chips}."
    )
  selector = {
    "cloud.google.com/gke-tpu-accelerator": _ACCELERATOR.value,
    "cloud.google.com/gke-tpu-topology": topology,
  }
  more = {
    "SLICES": _SLICES.value,
    "NODES": size // chips,
    "CHIPS_PER_NODE": chips,
  }
  return "jobset_tpu.yaml", selector, more


def _gpu(command):
  nodes, name = _NODES.value, _NAME.value
  joined = [
    f"--coordinator_address={name}-gpu-0-0.{name}:{_PORT}",
    f"--num_processes={nodes}",
    "--process_id=$(JOB_COMPLETION_INDEX)",  # Kubernetes puts it in
  ]
  more = {
    "NODES": nodes,
    "GPUS_PER_NODE": _GPUS.value,
    "PORT": _PORT,
    "COMMAND": [*command, *joined],
  }
  selector = {"cloud.google.com/gke-accelerator": _ACCELERATOR.value}
  return "jobset_gpu.yaml", selector, more


def _kubectl(*arguments: str, given: str | None = None) -> None:
  """Runs kubectl, exits with its status where it fails."""
  command = ["kubectl", f"--namespace={_NAMESPACE.value}", *arguments]
  if _DRY_RUN.value:
    print(shlex.join(command) + (f" <<'EOF'\n{given}EOF" if given else ""))
    return
  if not shutil.which("kubectl"):
    sys.exit(
      "error: kubectl must be installed, and is not. See"
      " https://kubernetes.io/docs/tasks/tools"
    )
  status = subprocess.run(
    command, input=given, text=True, check=False
  ).returncode
  if status:
    sys.exit(status)


def main(argv):
  """Does what the first argument says."""
  _, action, *command = [*argv, ""] if len(argv) < 2 else argv
  if action not in ("apply", "status", "logs", "delete"):
    raise app.UsageError(
      f"The action must be apply, status, logs or delete, got {action!r}."
    )
  if command and action != "apply":
    raise app.UsageError(f"{action} takes no command, got {command}.")
  name = _NAME.value or ""
  # Pods are NAME-slice-0-0-abcde, at most 63 letters.
  if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
    sys.exit(
      "error: --name must be small letters, digits and hyphens, 40 at most, a"
      f" letter first, got {name!r}."
    )
  pods = f"--selector=jobset.sigs.k8s.io/jobset-name={name}"
  if action == "apply":
    try:
      text = manifest(command)
    except ValueError as error:
      sys.exit(f"error: {error}")
    _kubectl("apply", "--filename=-", given=text)
  elif action == "status":
    _kubectl("get", "jobset", name)
    _kubectl("get", "pods", pods, "--output=wide")
  elif action == "logs":
    _kubectl("logs", pods, "--container=worker", "--prefix", "--tail=-1")
  else:
    _kubectl("delete", "jobset", name)


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses our flags before and after the action, not the command's."""
  flags.FLAGS.set_gnu_getopt(False)
  program, *rest = app.parse_flags_with_usage(argv)
  if not rest:
    return [program]
  action, *rest = rest
  _, *command = app.parse_flags_with_usage([program, *rest])
  return [program, action, *command]


if __name__ == "__main__":
  app.run(main, flags_parser=_parse_flags)
