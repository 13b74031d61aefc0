"""Upgrades from the previous release: its data, and its processes beside those of the code under test.

`release.tar.xz` is what that release needs to run. To replace it after a release:

    git archive --format=tar COMMIT bus infra models services dependencies cmd | xz -9e > tests/upgrade/release.tar.xz
"""
