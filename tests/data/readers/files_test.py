import contextlib
import functools
import hashlib
import http.server
import io
import pathlib
import tempfile
import threading
import zipfile
from unittest import mock

from absl.testing import absltest

from ppl_jax.data.readers import _files, bt_oasis, mrda

_COMMIT = "0123abc"


class _Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *args):
    pass


def _zip(members):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return buffer.getvalue()


class DownloadsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.served, self.folder = root / "served", root / "folder"
    self.served.mkdir()
    self.enterContext(mock.patch.dict("os.environ", {"no_proxy": "127.0.0.1"}))

  @contextlib.contextmanager
  def _server(self):
    handler = functools.partial(_Quiet, directory=self.served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
      thread = threading.Thread(target=server.serve_forever)
      thread.start()
      try:
        yield f"http://127.0.0.1:{server.server_port}"
      finally:
        server.shutdown()
        thread.join()

  def test_files_are_fetched_once_and_checked(self):
    contents = {"train.csv": b"ours", "dev.csv": b"theirs"}
    for name, content in contents.items():
      (self.served / name).write_bytes(content)
    sha256 = {n: hashlib.sha256(c).hexdigest() for n, c in contents.items()}
    with self._server() as base:
      _files.download_files(self.folder, base, sha256, "Ours")
      (self.folder / "dev.csv").unlink()
      (self.served / "train.csv").unlink()  # is not asked for again
      _files.download_files(self.folder, base, sha256, "Ours")
      (self.folder / "dev.csv").unlink()
      (self.served / "dev.csv").write_bytes(b"<html>moved</html>")
      with self.assertRaisesRegex(
        ValueError, r"dev\.csv must have the SHA-256 .*config\.dataset\.source"
      ):
        _files.download_files(self.folder, base, sha256, "Ours")
    self.assertEqual([f.name for f in self.folder.iterdir()], ["train.csv"])
    with self.assertRaisesRegex(
      ConnectionError, r"Ours dev\.csv could not .*config\.dataset\.source"
    ):
      _files.download_files(self.folder, base, sha256, "Ours")

  def test_one_folder_of_a_repository(self):
    root = f"Ours-{_COMMIT}"
    archive = self.served / f"someone/Ours/archive/{_COMMIT}.zip"
    archive.parent.mkdir(parents=True)
    with self._server() as base:
      repository = f"{base}/someone/Ours"
      arguments = (self.folder, repository, _COMMIT, "data")
      for content in (b"no archive", _zip({f"{root}/data.txt": "?"})):
        archive.write_bytes(content)
        with self.assertRaisesRegex(ValueError, rf"must hold {root}/data, got"):
          _files.download_repository(*arguments)
        self.assertEmpty(list(self.folder.iterdir()))
      archive.write_bytes(
        _zip({f"{root}/data/a.txt": "ours", f"{root}/audio/a.wav": "?"})
      )
      _files.download_repository(*arguments)
    # The server is gone.
    unpacked = _files.download_repository(*arguments)
    files = [f for f in self.folder.rglob("*") if f.is_file()]
    self.assertEqual(files, [unpacked / "data/a.txt"])

  def test_readers_of_repositories_read_what_they_unpack(self):
    root = f"Corpus-{_COMMIT}"
    members = {}
    for data, line in (
      ("mrda_data", "f|a|S|s|s"),
      ("oasis_data", "a|a|inform"),
    ):
      for split in ("train", "val", "test"):
        members[f"{root}/{data}/metadata/{split}_split.txt"] = split
        members[f"{root}/{data}/{split}/{split}.txt"] = line
    archive = self.served / f"Corpus/archive/{_COMMIT}.zip"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(_zip(members))
    for reader in (mrda, bt_oasis):
      with (
        self._server() as base,
        mock.patch.object(reader, "REPOSITORY", f"{base}/Corpus"),
        mock.patch.object(reader, "COMMIT", _COMMIT),
      ):
        source = reader.download(self.folder / reader.__name__, {})
      self.assertLen(reader.source_files(source, {}), 6)
      [dialogue] = reader.read(source, "validation", reader.CLASSES, {})
      self.assertEqual(dialogue.dialogue_id, "val")


if __name__ == "__main__":
  absltest.main()
