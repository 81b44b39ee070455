"""The scripts of launch/, against stand-ins for gcloud, kubectl and srun."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import yaml
from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parents[1]
TPU_POD = ROOT / "launch" / "tpu_pod.sh"
STAND_INS = ROOT / "tests" / "launch"
SLICE = ("--name=pod", "--zone=us-west4-a")
TPU = ("gcloud", "compute", "tpus")
WORKER_SH = "--command=bash ppl_jax/launch/worker.sh"
# Writes its name and arguments, then does what is in NAME.does.
RECORDER = """#!/usr/bin/env bash
name=${0##*/}
python3 -IS -c 'import json, sys; print(json.dumps(sys.argv[1:]))' \\
  "$name" "$@" >>"$STAND_IN/record"
if [[ -f $STAND_IN/$name.does ]]; then source "$STAND_IN/$name.does"; fi
"""


class LaunchTest(parameterized.TestCase):
  """Has a folder with stand-ins, first on PATH."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix="a b"))
    )
    self.bin = self.folder / "bin"
    self.bin.mkdir()
    self.environment = {
      **{k: v for k, v in os.environ.items() if not k.startswith("SLURM")},
      "PATH": f"{self.bin}:{os.environ['PATH']}",
      "STAND_IN": str(self.folder),
      "TPU_POD_POLL": "0.01",
      "PYTHONPATH": str(ROOT),
    }

  def program(self, name, text=RECORDER):
    path = self.bin / name
    path.write_text(text)
    path.chmod(0o755)

  def does(self, name, text):
    (self.folder / f"{name}.does").write_text(text)

  def start(self, *command, **variables):
    process = subprocess.Popen(
      [str(word) for word in command],
      cwd=ROOT,
      env={**self.environment, **variables},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    self.addCleanup(process.stdout.close)
    self.addCleanup(process.wait)
    self.addCleanup(process.kill)
    return process

  def run_command(self, *command, status=0, **variables):
    """Returns all output of a command that must end with a status."""
    process = self.start(*command, **variables)
    output, _ = process.communicate(timeout=60)
    self.assertEqual(process.returncode, status, output)
    return output

  def recorded(self):
    path = self.folder / "record"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(json.loads(line)) for line in lines]

  def wait_until(self, condition):
    deadline = time.monotonic() + 30
    while not condition():
      self.assertLess(time.monotonic(), deadline)
      time.sleep(0.02)


class ShellcheckTest(absltest.TestCase):
  def test_scripts(self):
    beside = pathlib.Path(sys.executable).parent
    program = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
    self.assertIsNotNone(program, "pip install -e '.[test]' brings it")
    scripts = sorted((ROOT / "launch").glob("*.sh"))
    self.assertLen(scripts, 3)
    found = subprocess.run(
      [program, *scripts], capture_output=True, text=True, check=False
    )
    self.assertEqual(found.returncode, 0, found.stdout)


class TpuPodTest(LaunchTest):
  def setUp(self):
    super().setUp()
    self.program(
      "gcloud",
      f'#!/bin/sh\nexec {sys.executable} -IS "{STAND_INS}/cloud.py" "$@"\n',
    )
    (self.folder / "workers").write_text("2")

  def pod(self, action, *flags, **more):
    return self.run_command(TPU_POD, action, *SLICE, *flags, **more)

  def installed(self):
    """Two workers that have the project."""
    for number in range(2):
      home = self.folder / f"worker-{number}"
      home.mkdir()
      (home / "ppl_jax").symlink_to(ROOT)
    (self.folder / "state").write_text("READY")

  def verbs(self):
    """What was done: gcloud's verb, and worker.sh's for ssh."""
    found = []
    for command in self.recorded():
      if command[0] != "gcloud":
        continue
      verb = command[4]
      if verb == "ssh":
        line = next(a for a in command if a.startswith("--command="))
        verb = "setup" if "tar -xzf" in line else line.split()[2]
      elif command[3] == "queued-resources":
        verb = f"queue {verb}"
      found.append(verb)
    return found

  def test_create(self):
    self.pod("create", "--type=v5litepod-16", "--spot", "--project=p")
    (command,) = self.recorded()
    self.assertEqual(
      command,
      (
        *TPU,
        *("tpu-vm", "create", "pod", "--accelerator-type=v5litepod-16"),
        *("--version=v2-alpha-tpuv5-lite", "--spot"),
        *("--zone=us-west4-a", "--project=p"),
      ),
    )

  def test_create_queued(self):
    states = ["WAITING_FOR_RESOURCES"] * 2 + ["PROVISIONING", "ACTIVE"]
    (self.folder / "queue").write_text("\n".join(states))
    flags = ("--queued", "--type=v6e-8", "--create_flag=--network=a b")
    output = self.pod("create", *flags)
    create, *looks = self.recorded()
    self.assertEqual(
      create,
      (
        *TPU,
        *("queued-resources", "create", "pod", "--node-id=pod"),
        *("--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e"),
        *("--network=a b", "--zone=us-west4-a"),
      ),
    )
    self.assertLen(looks, 4)
    for state in states:
      self.assertEqual(output.count(f"is {state}"), 1)
    self.assertIn("costs from now on", output)

  def test_queue_that_fails(self):
    (self.folder / "queue").write_text("WAITING_FOR_RESOURCES\nFAILED")
    flags = ("--queued", "--type=v6e-8", "--", "true")
    output = self.pod("supervise", *flags, status=1)
    self.assertIn("must become ACTIVE, and is FAILED", output)
    # It was waiting already: it keeps its place.
    self.assertEqual(self.verbs(), ["list", "queue list", "queue list"])

  @parameterized.parameters("\nFAILED", "\n")
  def test_new_request_that_fails(self, looks):
    (self.folder / "queue").write_text(looks)
    flags = ("--queued", "--type=v6e-8", "--", "true")
    self.pod("supervise", *flags, status=1)
    order = ["list", "queue list", "queue create", "queue list"]
    self.assertEqual(self.verbs(), order)

  def test_queue_that_is_full(self):
    (self.folder / "fail").write_text("create 7")
    flags = ("--queued", "--type=v6e-8", "--", "true")
    self.pod("supervise", *flags, status=7)
    self.assertEqual(self.verbs(), ["list", "queue list", "queue create"])

  @parameterized.parameters(
    ("create", "--type=v4-8"),
    ("status", "--queued"),
    ("stop",),
    ("delete", "--queued"),
    ("fetch", "--bucket=b", "--path=runs/a b", "--output={folder}/out"),
    ("logs", "--output={folder}/lo gs"),
  )
  def test_dry_run_prints_what_would_run(self, action, *flags):
    self.installed()
    flags = [flag.format(folder=self.folder) for flag in flags]
    printed = self.pod(action, *flags, "--dry_run")
    self.assertEmpty(self.recorded())
    self.assertFalse((self.folder / "out").exists())
    does = "mkdir -p ~/ppl_jax_runs; echo x >~/ppl_jax_runs/x.log;"
    does += "cd ~/ppl_jax_runs; echo x >current; echo 99999999 >x.pid"
    for number in range(2):
      home = self.folder / f"worker-{number}"
      subprocess.run(["bash", "-c", does], env={"HOME": str(home)}, check=True)
    self.pod(action, *flags)
    lines = [
      tuple(shlex.split(line))
      for line in printed.splitlines()
      if line.startswith("gcloud ")
    ]
    self.assertEqual(lines, self.recorded())
    if action == "logs":
      for number in range(2):
        log = self.folder / "lo gs" / f"{number}.log"
        self.assertEqual(log.read_text(), "x\n")

  def test_dry_run_of_everything(self):
    flags = ("--type=v5litepod-16", "--queued", "--bucket=gs://b/", "--dry_run")
    output = self.pod("supervise", *flags, "--", "echo", "it's  a;b")
    self.assertEmpty(self.recorded())
    lines = [
      shlex.split(line)
      for line in output.splitlines()
      if line.startswith("gcloud ")
    ]
    self.assertEqual(
      [" ".join(line[3:5]) for line in lines],
      ["tpu-vm list", "queued-resources list", "queued-resources create"]
      + ["queued-resources list", "tpu-vm scp"]
      + ["tpu-vm ssh"] * 4,
    )
    self.assertIn("--worker=all", lines[-3])
    start = next(a for a in lines[-3] if a.startswith(WORKER_SH))
    _, _, verb, _, *command = shlex.split(start)
    self.assertEqual((verb, command), ("start", ["echo", "it's  a;b"]))

  def test_setup(self):
    for name in ("uv", "gcsfuse", "sudo"):
      self.program(name)
    self.program("mountpoint", "#!/bin/sh\nexit 1\n")
    self.pod("setup", "--bucket=bu")
    scp, ssh, *on_workers = self.recorded()
    self.assertEqual(scp[3:5], ("tpu-vm", "scp"))
    self.assertEqual(scp[6:8], ("pod:ppl_jax.tar.gz", "--worker=all"))
    self.assertEqual(ssh[3:7], ("tpu-vm", "ssh", "pod", "--worker=all"))
    for number in range(2):
      home = self.folder / f"worker-{number}"
      self.assertTrue((home / "ppl_jax" / "ppl_jax" / "main.py").exists())
      environment = home / "ppl_jax_env"
      self.assertIn(
        ("uv", "venv", "--python=3.11", str(environment)), on_workers
      )
      project = home / "ppl_jax"
      install = (
        *("uv", "pip", "install", f"--python={environment}/bin/python"),
        f"--constraint={project}/constraints.txt",
        f"--editable={project}[tpu]",
      )
      self.assertIn(install, on_workers)
      mounts = [c for c in on_workers if c[0] == "gcsfuse"]
      self.assertIn(("bu", str(home / "bucket")), [m[-2:] for m in mounts])

  def test_run_on_all_workers(self):
    self.installed()
    script = 'echo "$0" "$1" in "$PWD"; echo "$1" >"$HOME/seen"'
    output = self.pod(
      "run", "--", "bash", "-c", script, "first  word", 'it\'s $HOME; "x"\n*'
    )
    said = f'first  word it\'s $HOME; "x"\n* in {self.folder}/worker-0/ppl_jax'
    self.assertEqual(output.count(said), 1)  # worker 0 shows it, others do not
    self.assertNotIn("worker-1/ppl_jax", output)
    for number in range(2):
      seen = self.folder / f"worker-{number}" / "seen"
      self.assertEqual(seen.read_text(), 'it\'s $HOME; "x"\n*\n')
    self.assertEqual(self.verbs(), ["start", "follow", "wait"])

  def test_repeated_start_starts_once(self):
    self.installed()  # gcloud repeats what it lost the answer of
    home = self.folder / "worker-0"
    worker = ("bash", home / "ppl_jax" / "launch" / "worker.sh")
    for _ in range(2):
      start = ("start", "id", "bash", "-c", "echo x >>~/n; sleep .3")
      self.run_command(*worker, *start, HOME=str(home))
    self.run_command(*worker, "wait", HOME=str(home))
    self.assertEqual((home / "n").read_text(), "x\n")

  def test_a_worker_that_fails_is_seen(self):
    self.installed()
    script = "[[ $HOME == *0 ]] || { echo why it failed; exit 3; }"
    output = self.pod("run", "--", "bash", "-c", script, status=3)
    self.assertIn("ended with status 3", output)
    self.assertIn("why it failed", output)

  def test_stop(self):
    self.installed()
    # As a JAX process does, it stays when it is asked to end.
    script = "trap '' TERM; echo $$ >~/pid; while true; do sleep .1; done"
    running = self.start(TPU_POD, "run", *SLICE, "--", "bash", "-c", script)
    pids = [self.folder / f"worker-{n}" / "pid" for n in range(2)]
    self.wait_until(lambda: all(p.exists() and p.read_text() for p in pids))
    second = self.pod("run", "--", "true", status=1)
    self.assertIn("One command at a time", second)
    setup = self.pod("setup", status=1)  # would delete what runs
    self.assertIn("a command is running here", setup)
    self.pod("stop")
    for pid in pids:
      self.assertFalse(running_process(int(pid.read_text())))
    output, _ = running.communicate(timeout=60)
    self.assertNotEqual(running.returncode, 0)
    self.assertIn("ended with status 137", output)
    self.pod("stop")  # nothing left: no error

  def test_connection_that_breaks(self):
    self.installed()
    (self.folder / "fail").write_text("follow 255")
    output = self.pod("run", "--", "echo", "still there", status=255)
    self.assertIn("the command goes on", output)
    self.assertIn("still there", self.pod("attach"))
    self.assertEqual(self.verbs(), ["start", "follow", "follow", "wait"])

  @parameterized.parameters("create", "scp", "setup", "start", "wait", "list")
  def test_failure_of_gcloud_stops(self, word):
    self.installed()
    (self.folder / "state").unlink()
    for name in ("uv", "gcsfuse", "mountpoint"):
      self.program(name)
    (self.folder / "fail").write_text(f"{word} 7")
    flags = ("--type=v4-8", "--restarts=0", "--", "true")
    self.pod("supervise", *flags, status=7)
    order = ["list", "create", "scp", "setup", "start", "follow", "wait"]
    self.assertEqual(self.verbs(), order[: order.index(word) + 1])

  def test_preempted_slice_is_replaced(self):
    self.installed()
    for name in ("uv", "gcsfuse", "mountpoint"):
      self.program(name)
    (self.folder / "fail").write_text("follow 255 PREEMPTED")
    flags = ("--type=v4-8", "--spot", "--bucket=b", "--", "true")
    output = self.pod("supervise", *flags)
    self.assertIn("the slice is PREEMPTED", output)
    self.assertEqual(
      self.verbs(),
      [
        *("list", "busy", "scp", "setup", "start", "follow"),
        *("list", "delete", "create", "scp", "setup"),
        *("start", "follow", "wait"),
      ],
    )

  def test_supervising_again_goes_on_with_what_runs(self):
    self.installed()
    for name in ("uv", "gcsfuse", "mountpoint"):
      self.program(name)
    script = "while [[ ! -f ~/end ]]; do sleep .05; done; echo all there"
    flags = ("--type=v4-8", "--", "bash", "-c", script)
    (self.folder / "fail").write_text("follow 9")
    self.pod("run", "--", "bash", "-c", script, status=9)  # the laptop closed
    running = self.start(TPU_POD, "supervise", *SLICE, *flags)
    self.wait_until(lambda: self.verbs().count("follow") == 2)
    for number in range(2):
      (self.folder / f"worker-{number}" / "end").touch()
    output, _ = running.communicate(timeout=60)
    self.assertEqual(running.returncode, 0, output)
    self.assertIn("goes on with it", output)
    self.assertIn("all there", output)
    self.assertEqual(
      self.verbs(), ["start", "follow", "list", "busy", "follow", "wait"]
    )

  def test_a_look_that_fails_is_taken_again(self):
    self.installed()
    (self.folder / "state").write_text("READY")
    for name in ("uv", "gcsfuse", "mountpoint"):
      self.program(name)
    (self.folder / "fail").write_text("follow 255\nlist@2 1")
    flags = ("--type=v4-8", "--restarts=3", "--", "true")
    self.pod("supervise", *flags)
    self.assertEqual(
      self.verbs(),
      [
        *("list", "busy", "scp", "setup", "start", "follow"),
        *("list", "list", "follow", "wait"),
      ],
    )

  def test_slice_that_is_there_is_kept(self):
    self.installed()
    for name in ("uv", "gcsfuse", "mountpoint"):
      self.program(name)
    (self.folder / "fail").write_text("follow 255\nwait 9\nwait 9")
    flags = ("--type=v4-8", "--restarts=2", "--", "true")
    output = self.pod("supervise", *flags, status=9)
    self.assertIn("Gave up after 2 restarts", output)
    self.assertEqual(
      self.verbs(),
      [
        *("list", "busy", "scp", "setup", "start", "follow"),
        *("list", "follow", "wait"),  # the connection broke: attached
        *("list", "stop", "start", "follow", "wait"),  # it failed itself
      ],
    )

  @parameterized.parameters(
    (("fly", *SLICE), "The action must be one of"),
    (("create", "--zone=z"), "needs --name"),
    (("create", "--name=pod"), "needs --zone"),
    (("create", *SLICE), "needs --type"),
    (("create", *SLICE, "--type=v99-8"), "Name it with --version"),
    (("create", *SLICE, "--type", "v4-8"), "Write --type=VALUE"),
    (("create", *SLICE, "--typ=v4-8"), "got '--typ=v4-8'"),
    (("create", "--name=My_Pod", "--zone=z"), "got 'My_Pod'"),
    (("run", *SLICE), "needs a command after --"),
    (("delete", *SLICE, "--", "rm"), "takes no command"),
    (("logs", *SLICE), "needs --output"),
    (("fetch", *SLICE, "--output=o", "--path=p"), "needs --bucket"),
    (("setup", *SLICE, "--bucket=gs://b/c"), "without a folder"),
    (("run", *SLICE, "--restarts=x", "--", "a"), "--restarts must be a"),
    ((), "Usage:"),
  )
  def test_arguments_are_checked(self, arguments, message):
    self.assertIn(message, self.run_command(TPU_POD, *arguments, status=2))
    self.assertEmpty(self.recorded())

  def test_help(self):
    self.assertIn("Example", self.run_command(TPU_POD, "--help"))


class JobSetTest(LaunchTest):
  COMMON = ("--name=ppl", "--image=repo/ppl:1", "--bucket=gs://bu")
  TPU = (*COMMON, "--accelerator=tpu-v5-lite-podslice", "--topology=4x8")
  GPU = (*COMMON, "--accelerator=nvidia-h100-80gb", "--nodes=3")
  COMMAND = ("python", "-m", "a", "--b=c  d: {e}", "$(HOSTNAME)", "'\"#\n")

  def jobset(self, *arguments, **more):
    return self.run_command(
      sys.executable, "-m", "launch.jobset", *arguments, **more
    )

  def applied(self, *flags):
    """The manifest that kubectl gets, and the parts of it."""
    self.program("kubectl")
    self.does("kubectl", 'cat >"$STAND_IN/manifest"')
    self.jobset("apply", *flags, *self.COMMAND)
    self.assertEqual(
      self.recorded(),
      [("kubectl", "--namespace=default", "apply", "--filename=-")],
    )
    manifest = yaml.safe_load((self.folder / "manifest").read_text())
    self.assertEqual(manifest["apiVersion"], "jobset.x-k8s.io/v1alpha2")
    self.assertEqual(manifest["kind"], "JobSet")
    (job,) = manifest["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    self.assertEqual(pod["restartPolicy"], "Never")
    self.assertEqual(job["template"]["spec"]["backoffLimit"], 0)
    self.assertEqual(
      pod["volumes"][-1]["csi"]["volumeAttributes"]["bucketName"], "bu"
    )
    return manifest, job, pod

  def test_tpu(self):
    flags = ("--slices=2", "--spot", "--restarts=5")
    manifest, job, pod = self.applied(*self.TPU, *flags)
    self.assertEqual(manifest["metadata"]["name"], "ppl")
    self.assertEqual(manifest["spec"]["failurePolicy"], {"maxRestarts": 5})
    self.assertEqual(job["replicas"], 2)
    self.assertEqual(job["template"]["spec"]["parallelism"], 8)  # 4x8 / 4
    self.assertEqual(job["template"]["spec"]["completions"], 8)
    self.assertEqual(
      pod["nodeSelector"],
      {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
      },
    )
    (container,) = pod["containers"]
    self.assertEqual(container["resources"]["limits"], {"google.com/tpu": 4})
    # Kubernetes would replace a variable; two dollars are one to it.
    command = [*self.COMMAND[:4], "$$(HOSTNAME)", self.COMMAND[5]]
    self.assertEqual(container["command"], command)

  def test_gpu(self):
    _, job, pod = self.applied(*self.GPU, "--gpus_per_node=4")
    self.assertEqual(job["replicas"], 1)
    self.assertEqual(job["template"]["spec"]["parallelism"], 3)
    self.assertEqual(job["template"]["spec"]["completions"], 3)
    self.assertEqual(job["template"]["spec"]["completionMode"], "Indexed")
    self.assertEqual(
      pod["nodeSelector"],
      {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
    )
    (container,) = pod["containers"]
    self.assertEqual(container["resources"]["limits"], {"nvidia.com/gpu": 4})
    host = f"ppl-{job['name']}-0-0.ppl"  # JOBSET-JOB-INDEX-POD.SUBDOMAIN
    self.assertEqual(
      container["command"][6:],
      [
        f"--coordinator_address={host}:8482",
        "--num_processes=3",
        "--process_id=$(JOB_COMPLETION_INDEX)",
      ],
    )

  def test_dry_run_runs_nothing(self):
    self.program("kubectl")
    printed = self.jobset("apply", *self.TPU, "--dry_run", *self.COMMAND)
    first, text = printed.split("\n", 1)
    self.assertTrue(first.startswith("kubectl --namespace=default apply"))
    self.assertEqual(
      yaml.safe_load(text.removesuffix("EOF\n"))["kind"], "JobSet"
    )
    self.jobset("--dry_run", "delete", "--name=ppl")
    self.assertEmpty(self.recorded())

  def test_other_actions_and_failure(self):
    self.program("kubectl")
    for action in ("status", "logs", "delete"):
      self.jobset(action, "--name=ppl", "--namespace=team")
    pods = "--selector=jobset.sigs.k8s.io/jobset-name=ppl"
    self.assertEqual(
      [command[1:] for command in self.recorded()],
      [
        ("--namespace=team", "get", "jobset", "ppl"),
        ("--namespace=team", "get", "pods", pods, "--output=wide"),
        (
          *("--namespace=team", "logs", pods),
          *("--container=worker", "--prefix", "--tail=-1"),
        ),
        ("--namespace=team", "delete", "jobset", "ppl"),
      ],
    )
    self.does("kubectl", "exit 5")
    self.jobset("status", "--name=ppl", status=5)

  @parameterized.parameters(
    (("apply", "--name=ppl", "true"), "apply needs --image"),
    (("apply", *TPU), "apply needs a command"),
    (("apply", *COMMON, "--accelerator=a", "true"), "got neither"),
    (("apply", *TPU, "--nodes=2", "true"), "got both"),
    (("apply", *TPU, "--topology=4by4", "true"), "got '4by4'"),
    (("apply", *TPU, "--chips_per_node=5", "true"), "32 chips, and 5"),
    (("apply", *TPU, "--bucket=a/b", "true"), "must be a bucket's name"),
    (("delete", "--name=Not_One"), "got 'Not_One'"),
    (("delete", "--name=a", "b"), "takes no command"),
    (("fly", "--name=a"), "got 'fly'"),
  )
  def test_arguments_are_checked(self, arguments, message):
    self.assertIn(message, self.jobset(*arguments, status=1))


class SlurmTest(LaunchTest):
  FLAGS = ("--config=configs/quickstart.py", "--workdir=/shared/a b")

  def setUp(self):
    super().setUp()
    self.program("srun")
    self.program("scontrol")
    self.job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT)}

  def sbatch(self, *flags, status=0, **variables):
    return self.run_command(
      ROOT / "launch" / "slurm.sh",
      *flags,
      status=status,
      **self.job,
      **variables,
    )

  def test_command(self):
    self.sbatch(*self.FLAGS, PPL_JAX_SRUN="--mem=0 --label")
    expected = ("srun", "--kill-on-bad-exit=1", "--mem=0", "--label")
    expected += ("python", "-m", "ppl_jax.main", *self.FLAGS)
    self.assertEqual(self.recorded(), [expected])

  @parameterized.parameters(
    ("1", "0,1,2,3"),  # one task: told of all GPUs
    ("4", ""),  # one for each: JAX counts them
  )
  def test_gpus(self, tasks, devices):
    self.does("srun", 'echo "devices=${JAX_LOCAL_DEVICE_IDS:-}"')
    output = self.sbatch(
      *self.FLAGS, SLURM_GPUS_ON_NODE="h100:4", SLURM_NTASKS_PER_NODE=tasks
    )
    self.assertIn(f"devices={devices}\n", output)
    self.assertIn("--gpu-bind=none", self.recorded()[0])

  def test_runs_again_after_a_failure(self):
    self.does(
      "srun", 'echo >>"$STAND_IN/n"; exit $((8 - $(wc -l <"$STAND_IN/n") * 4))'
    )
    self.sbatch(*self.FLAGS)
    self.assertLen(self.recorded(), 2)
    self.does("srun", "exit 6")
    output = self.sbatch(*self.FLAGS, status=6, PPL_JAX_RESTARTS="1")
    self.assertLen(self.recorded(), 4)
    self.assertIn("ended with status 6; 0 restarts left", output)

  def test_time_limit_requeues(self):
    self.does("srun", 'echo $$ >"$STAND_IN/pid"; exec sleep 1000')
    self.does("scontrol", 'kill "$(<"$STAND_IN/pid")"')  # as Slurm does
    job = self.start(ROOT / "launch" / "slurm.sh", *self.FLAGS, **self.job)
    pid = self.folder / "pid"
    self.wait_until(lambda: pid.exists() and pid.read_text())
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=30)
    self.assertIn("time limit is near", output)
    self.assertEqual(
      [command[:3] for command in self.recorded()],
      [
        ("srun", "--kill-on-bad-exit=1", "python"),
        ("scontrol", "requeue", "7"),
      ],
    )

  def test_what_slurm_is_asked(self):
    text = (ROOT / "launch" / "slurm.sh").read_text()
    for line in ("--requeue", "--signal=B:USR1@120", "--open-mode=append"):
      self.assertIn(f"\n#SBATCH {line}\n", text)
    # Slurm reads no #SBATCH after the first command.
    self.assertNotIn("#SBATCH", text.split("set -euo")[1])

  @parameterized.parameters(
    ({"SLURM_JOB_ID": ""}, "must run as a Slurm job"),
    ({"SLURM_SUBMIT_DIR": "/"}, "in the project's folder, got /"),
    ({"PPL_JAX_ENV": "/none"}, "must be a virtual environment"),
    ({"PPL_JAX_RESTARTS": "-1"}, "must be a number, got '-1'"),
    ({"SLURM_NTASKS_PER_NODE": "2"}, "must be 1 where no GPUs"),
    (
      {"SLURM_NTASKS_PER_NODE": "2", "SLURM_GPUS_ON_NODE": "8"},
      "must be 1 or the number of GPUs of a node, 8, got 2",
    ),
  )
  def test_surroundings_are_checked(self, variables, message):
    self.job |= variables
    self.assertIn(message, self.sbatch(*self.FLAGS, status=2))
    self.assertEmpty(self.recorded())

  def test_workdir_is_needed(self):
    self.assertIn("--workdir=DIR must be", self.sbatch("--config=c", status=2))


class LocalTest(LaunchTest):
  def command(self, *flags):
    return (sys.executable, "-m", "launch.local", *flags)

  def python(self, text):
    """A worker that runs Python; `me` is its number."""
    start = "import os, signal, sys, time; me = int(sys.argv[-1][-1])\n"
    return (sys.executable, "-c", start + text)

  def test_joins_and_goes_on_after_a_kill(self):
    output = self.run_command(
      *self.command("--devices=3", "--restarts=1", "--grace=0.5"),
      *(sys.executable, STAND_INS / "joins.py", self.folder),
    )
    self.assertIn("worker 1 was killed by SIGKILL", output)
    self.assertIn("starting all again", output)
    for number in range(2):
      self.assertIn(f"[{number}] 2 processes 6 devices 21\n", output)

  def test_a_failed_worker_ends_all(self):
    output = self.run_command(
      *self.command("--processes=3", "--restarts=2"),
      *self.python(
        "import glob, pathlib; folder = os.environ['STAND_IN']\n"
        "pathlib.Path(folder, f'pid-{os.getpid()}').touch()\n"
        "while me == 2 and len(glob.glob(folder + '/pid-*')) % 3:"
        " time.sleep(.01)\n"
        "sys.exit(9) if me == 2 else time.sleep(1000)"
      ),
      status=9,
    )
    self.assertEqual(output.count("worker 2 failed with exit status 9"), 3)
    self.assertIn("1 restarts left", output)
    pids = [int(path.name[4:]) for path in self.folder.glob("pid-*")]
    self.assertLen(pids, 9)
    for pid in pids:
      with self.assertRaises(ProcessLookupError):
        os.kill(pid, 0)

  def test_status_of_a_killed_worker(self):
    output = self.run_command(
      *self.command("--processes=1"),
      *self.python("os.kill(os.getpid(), signal.SIGKILL)"),
      status=137,
    )
    self.assertIn("worker 0 was killed by SIGKILL; the others", output)

  @parameterized.parameters(signal.SIGINT, signal.SIGTERM)
  def test_interrupt_ends_all(self, number):
    job = self.start(
      *self.command("--restarts=3", "--grace=0.2"),
      *self.python(
        "signal.signal(signal.SIGTERM, lambda *_: print('asked'))\n"
        "open(os.environ['STAND_IN'] + f'/{me}', 'w').write(str(os.getpid()))\n"
        "time.sleep(1000)"
      ),
    )
    pids = [self.folder / str(n) for n in range(2)]
    self.wait_until(lambda: all(p.exists() and p.read_text() for p in pids))
    job.send_signal(number)
    output, _ = job.communicate(timeout=30)
    self.assertEqual(job.returncode, 128 + number, output)
    self.assertEqual(output.count("asked"), 2)
    for pid in pids:
      with self.assertRaises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)

  def test_workers_end_with_a_killed_launcher(self):
    if sys.platform != "linux":
      self.skipTest("the kernel does it on Linux only")
    job = self.start(
      *self.command("--processes=1"),
      *self.python("print(os.getpid(), flush=True); time.sleep(1000)"),
    )
    pid = int(job.stdout.readline().split()[1])
    job.kill()
    job.communicate()
    self.wait_until(lambda: not running_process(pid))

  def test_lines_are_led_by_the_number_and_bars_shown_once(self):
    output = self.run_command(
      *self.command(),
      *self.python(
        "for i in range(3): sys.stderr.write(f'\\r{i}/2'); time.sleep(.02)\n"
        "print(); print('ä', os.environ['XLA_FLAGS'][-2:])\n"
        "print('end', end='')"
      ),
      XLA_FLAGS="--a",
    )
    for number in range(2):
      lines = [
        line[4:] for line in output.splitlines() if line[:3] == f"[{number}]"
      ]
      self.assertEqual(lines, ["2/2", "ä =1", "end"])
    self.assertNotIn("\r", output)

  def test_mistakes(self):
    for arguments, message in (
      ((), "A command must follow"),
      (("nosuch", "--a"), "got 'nosuch', which is none"),
      (("--processes=0", "true"), "--processes"),
    ):
      self.assertIn(
        message, self.run_command(*self.command(*arguments), status=1)
      )


def running_process(pid):
  """Says whether a process is there and no zombie."""
  try:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except FileNotFoundError:
    return False
  return stat.rpartition(")")[2].split()[0] != "Z"


if __name__ == "__main__":
  absltest.main()
