"""The commit that records name."""

import subprocess

from dlm_jax.evaluation import provenance


def test_a_commit_is_of_the_repository_that_has_the_code(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
        done = subprocess.run(
            ["git", *identity, *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    own, index = tmp_path / "own.py", tmp_path / ".git" / "index"
    own.write_text("1\n")
    monkeypatch.setattr(provenance, "__file__", str(own))
    assert provenance._commit() is None
    git("init", "--quiet")
    # As in a virtual environment inside of somebody's repository.
    git("commit", "--quiet", "--allow-empty", "--message=first")
    assert provenance._commit() is None
    git("add", "own.py")
    git("commit", "--quiet", "--message=second")
    commit = git("rev-parse", "HEAD")
    assert provenance._commit() == commit
    own.write_text("2\n")
    assert provenance._commit() == f"{commit}+"
    # The same text at another time: git would note that in the index.
    own.unlink()
    own.write_text("1\n")
    before = index.stat()
    assert provenance._commit() == commit
    assert index.stat() == before
