from minidist.moved import now

now("minidist.parallel.server.backup_workers", __name__)
