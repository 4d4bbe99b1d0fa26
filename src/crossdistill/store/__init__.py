"""Teachers' answers on disk: written once in shards by any number of processes, read back by (epoch, sample)."""

from crossdistill.store.codec import Answers
from crossdistill.store.manifest import Keep, Manifest, is_store
from crossdistill.store.read import Store
from crossdistill.store.verify import Verification, verify
from crossdistill.store.write import StoreWriter, check_folder

__all__ = ["Answers", "Keep", "Manifest", "Store", "StoreWriter", "Verification", "check_folder", "is_store", "verify"]
