//! The tables of the three kinds of file, in steps: each leads to the next version, and only adds.
//!
//! Rows of a family stand in `meta.db`, whose small pages suit small rows; bytes of blocks in `blocks.db`, whose large
//! pages suit those (263 against 69–85 MiB/s). What is inline or a patch stands in `bytes`, a rowid table:
//! a row of a WITHOUT ROWID table overflows beyond about a quarter of a page.
//! `*_h` holds what was replaced and a kept view still sees, from `born` to before `died`.

/// What a database is brought to, and what this program knows.
pub(super) const VERSION: u32 = 7;

pub(super) const CONTROL: &[&str] = &[
    "
CREATE TABLE IF NOT EXISTS schema(id INTEGER PRIMARY KEY CHECK(id = 1), version INTEGER NOT NULL,
    min_version INTEGER NOT NULL, next_family INTEGER NOT NULL);
INSERT OR IGNORE INTO schema VALUES(1, 1, 1, 1);
CREATE TABLE IF NOT EXISTS tenant(id BLOB PRIMARY KEY, name TEXT NOT NULL, family INTEGER NOT NULL,
    state INTEGER NOT NULL, session BLOB) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS tenant_name ON tenant(name) WHERE state = 0;
CREATE INDEX IF NOT EXISTS tenant_family ON tenant(family);
CREATE INDEX IF NOT EXISTS tenant_session ON tenant(session) WHERE session IS NOT NULL;
CREATE TABLE IF NOT EXISTS session(id BLOB PRIMARY KEY, node TEXT NOT NULL, boot_id TEXT NOT NULL,
    pid INTEGER NOT NULL, start_time INTEGER NOT NULL) WITHOUT ROWID;
",
    "
UPDATE schema SET version = max(version, 2);
CREATE TABLE IF NOT EXISTS volume(id BLOB PRIMARY KEY, request TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL) WITHOUT ROWID;
-- purpose 0: a snapshot; 1: the base of a clone; 2: for nothing any more. layer NULL: to be sealed.
CREATE TABLE IF NOT EXISTS snapshot(id BLOB PRIMARY KEY, tenant BLOB NOT NULL, request TEXT NOT NULL,
    purpose INTEGER NOT NULL, branch INTEGER, layer INTEGER, name TEXT, sealed_at INTEGER, used_bytes INTEGER,
    used_inodes INTEGER) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS snapshot_request ON snapshot(request) WHERE purpose = 0;
CREATE INDEX IF NOT EXISTS snapshot_tenant ON snapshot(tenant, id);
",
    "
UPDATE schema SET version = max(version, 3);
-- purpose 3: a checkpoint that a user made; it goes with its tenant.
CREATE UNIQUE INDEX IF NOT EXISTS snapshot_checkpoint ON snapshot(tenant, request) WHERE purpose = 3;
CREATE TABLE IF NOT EXISTS tag(tenant BLOB NOT NULL, name TEXT NOT NULL, branch INTEGER NOT NULL,
    layer INTEGER NOT NULL, PRIMARY KEY(tenant, name)) WITHOUT ROWID;
",
    "
UPDATE schema SET version = max(version, 6);
-- Where volumes may be mounted, as whoever attaches them has said (mode: CSI's number of the access mode); which nodes there are.
CREATE TABLE IF NOT EXISTS publication(tenant BLOB NOT NULL, node TEXT NOT NULL, mode INTEGER NOT NULL,
    read_only INTEGER NOT NULL, PRIMARY KEY(tenant, node)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS node(node TEXT PRIMARY KEY, seen_at INTEGER NOT NULL) WITHOUT ROWID;
",
    "
UPDATE schema SET version = max(version, 7);
",
];

pub(super) const META: &[&str] = &[
    "
CREATE TABLE IF NOT EXISTS family(id INTEGER PRIMARY KEY CHECK(id = 1), next_block INTEGER NOT NULL,
    next_branch INTEGER NOT NULL);
INSERT OR IGNORE INTO family VALUES(1, 1, 1);

-- held = 0: released; session, epoch and token stay, so that a journal found later knows its fence.
-- uploads_from: block ids from here on may be uploads in flight of the holder.
CREATE TABLE IF NOT EXISTS tenant(id BLOB PRIMARY KEY, name TEXT NOT NULL, state INTEGER NOT NULL,
    quota_bytes INTEGER NOT NULL, quota_inodes INTEGER NOT NULL, max_file INTEGER NOT NULL,
    block_size INTEGER NOT NULL, compression INTEGER NOT NULL,
    head_branch INTEGER NOT NULL, cur_layer INTEGER NOT NULL, last_view INTEGER NOT NULL,
    used_bytes INTEGER NOT NULL, used_inodes INTEGER NOT NULL, next_ino INTEGER NOT NULL, seq INTEGER NOT NULL,
    epoch INTEGER NOT NULL, token BLOB NOT NULL, session BLOB NOT NULL, held INTEGER NOT NULL,
    wanted INTEGER NOT NULL, uploads_from INTEGER NOT NULL, commit_epoch INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;

-- fork_seq: the tenant's position when the branch began.
CREATE TABLE IF NOT EXISTS branch(branch INTEGER PRIMARY KEY, tenant BLOB, parent INTEGER, parent_layer INTEGER,
    ino_floor INTEGER NOT NULL, fork_seq INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS branch_parent ON branch(parent, parent_layer) WHERE parent IS NOT NULL;
CREATE INDEX IF NOT EXISTS branch_tenant ON branch(tenant);
CREATE TABLE IF NOT EXISTS layer(branch INTEGER NOT NULL, layer INTEGER NOT NULL, tenant BLOB NOT NULL,
    name TEXT NOT NULL, request TEXT NOT NULL, sealed_at INTEGER NOT NULL, used_bytes INTEGER NOT NULL,
    used_inodes INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY(branch, layer)) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS layer_name ON layer(tenant, name);
CREATE UNIQUE INDEX IF NOT EXISTS layer_request ON layer(tenant, request);

-- dead = 1: a whiteout.
CREATE TABLE IF NOT EXISTS inode(branch INTEGER NOT NULL, ino INTEGER NOT NULL, born INTEGER NOT NULL,
    dead INTEGER NOT NULL, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, rdev INTEGER NOT NULL,
    nlink INTEGER NOT NULL, size INTEGER NOT NULL, atime INTEGER NOT NULL, atime_ns INTEGER NOT NULL,
    mtime INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
    dir_parent INTEGER NOT NULL, did INTEGER NOT NULL, cut INTEGER NOT NULL, charge INTEGER NOT NULL,
    prealloc BLOB, target BLOB, PRIMARY KEY(branch, ino)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS inode_orphan ON inode(branch, ino) WHERE nlink = 0 AND dead = 0;
CREATE TABLE IF NOT EXISTS inode_h(branch INTEGER NOT NULL, ino INTEGER NOT NULL, born INTEGER NOT NULL,
    dead INTEGER NOT NULL, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, rdev INTEGER NOT NULL,
    nlink INTEGER NOT NULL, size INTEGER NOT NULL, atime INTEGER NOT NULL, atime_ns INTEGER NOT NULL,
    mtime INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
    dir_parent INTEGER NOT NULL, did INTEGER NOT NULL, cut INTEGER NOT NULL, charge INTEGER NOT NULL,
    prealloc BLOB, target BLOB, died INTEGER NOT NULL, PRIMARY KEY(branch, ino, died)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS inode_h_died ON inode_h(branch, died);

-- ino NULL: a whiteout.
CREATE TABLE IF NOT EXISTS dentry(branch INTEGER NOT NULL, parent INTEGER NOT NULL, name BLOB NOT NULL,
    born INTEGER NOT NULL, ino INTEGER, kind INTEGER NOT NULL, cookie INTEGER NOT NULL,
    PRIMARY KEY(branch, parent, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS dentry_cookie ON dentry(branch, parent, cookie);
CREATE TABLE IF NOT EXISTS dentry_h(branch INTEGER NOT NULL, parent INTEGER NOT NULL, name BLOB NOT NULL,
    born INTEGER NOT NULL, ino INTEGER, kind INTEGER NOT NULL, cookie INTEGER NOT NULL, died INTEGER NOT NULL,
    PRIMARY KEY(branch, parent, name, died)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS dentry_h_cookie ON dentry_h(branch, parent, cookie);
CREATE INDEX IF NOT EXISTS dentry_h_died ON dentry_h(branch, died);

-- data NULL: a whiteout.
CREATE TABLE IF NOT EXISTS xattr(branch INTEGER NOT NULL, ino INTEGER NOT NULL, born INTEGER NOT NULL,
    data BLOB, PRIMARY KEY(branch, ino)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS xattr_h(branch INTEGER NOT NULL, ino INTEGER NOT NULL, born INTEGER NOT NULL,
    data BLOB, died INTEGER NOT NULL, PRIMARY KEY(branch, ino, died)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS xattr_h_died ON xattr_h(branch, died);

-- kind 0: a hole or whiteout; 1: block is an id in block; 2: block is an id in bytes.
CREATE TABLE IF NOT EXISTS ext(branch INTEGER NOT NULL, did INTEGER NOT NULL, blk INTEGER NOT NULL,
    born INTEGER NOT NULL, kind INTEGER NOT NULL, alloc BLOB, block INTEGER,
    PRIMARY KEY(branch, did, blk)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ext_block ON ext(block) WHERE kind = 1;
CREATE TABLE IF NOT EXISTS ext_h(branch INTEGER NOT NULL, did INTEGER NOT NULL, blk INTEGER NOT NULL,
    born INTEGER NOT NULL, kind INTEGER NOT NULL, alloc BLOB, block INTEGER, died INTEGER NOT NULL,
    PRIMARY KEY(branch, did, blk, died)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ext_h_block ON ext_h(block) WHERE kind = 1;
CREATE INDEX IF NOT EXISTS ext_h_died ON ext_h(branch, died);

-- Of the row version `born`: it does not move when that one becomes history. bytes: an id in bytes.
CREATE TABLE IF NOT EXISTS patch(branch INTEGER NOT NULL, did INTEGER NOT NULL, blk INTEGER NOT NULL,
    born INTEGER NOT NULL, seq INTEGER NOT NULL, off INTEGER NOT NULL, len INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY(branch, did, blk, born, seq, off)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bytes(id INTEGER PRIMARY KEY, data BLOB NOT NULL);

-- Ancestors' blocks of this content from `blk` on are invisible in views of the branch from layer `born` on.
-- (An inode's own `cut` does not say of which fork it speaks, once a clone is cloned.)
CREATE TABLE IF NOT EXISTS cut(branch INTEGER NOT NULL, did INTEGER NOT NULL, born INTEGER NOT NULL,
    blk INTEGER NOT NULL, PRIMARY KEY(branch, did, born)) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS block(block INTEGER PRIMARY KEY, hash BLOB NOT NULL, len INTEGER NOT NULL,
    codec INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS block_hash ON block(hash);

-- Work for the collector: blocks that may have lost their last reference; contents that died;
-- history that a deleted view needed (born > above, died in below + 1 ..= upto).
CREATE TABLE IF NOT EXISTS dropped(block INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS dead(branch INTEGER NOT NULL, did INTEGER NOT NULL, died INTEGER NOT NULL,
    PRIMARY KEY(branch, did)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS prune(id INTEGER PRIMARY KEY, branch INTEGER NOT NULL, above INTEGER NOT NULL,
    below INTEGER NOT NULL, upto INTEGER NOT NULL);
",
    "
-- What versions take that died up to a layer; and, of a branch that is no head any more, its present rows (NULL: not counted yet).
ALTER TABLE branch ADD COLUMN history_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE branch ADD COLUMN history_upto INTEGER NOT NULL DEFAULT 0;
ALTER TABLE branch ADD COLUMN left_bytes INTEGER;
-- Where the branch began, if it has been flattened since: what it has come from.
ALTER TABLE branch ADD COLUMN origin INTEGER;
ALTER TABLE branch ADD COLUMN origin_layer INTEGER;
-- Reaped: kept to know that the ancestors' rows of the content are not to be taken over.
ALTER TABLE dead ADD COLUMN reaped INTEGER NOT NULL DEFAULT 0;
CREATE INDEX dead_left ON dead(branch) WHERE reaped = 0;
",
    "
-- Audit events of a tenant, whatever branch it writes, packed; until: when the last of them happened, in microseconds since 1970.
CREATE TABLE IF NOT EXISTS audit(id INTEGER PRIMARY KEY, tenant BLOB NOT NULL, until INTEGER NOT NULL,
    seq INTEGER NOT NULL, part INTEGER NOT NULL, since INTEGER NOT NULL, events INTEGER NOT NULL, data BLOB NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS audit_until ON audit(tenant, until, seq, part);
-- From position silent_from to silent_to nothing but the audit changed; a release that does not know it moves the position past silent_to.
ALTER TABLE tenant ADD COLUMN silent_from INTEGER NOT NULL DEFAULT -1;
ALTER TABLE tenant ADD COLUMN silent_to INTEGER NOT NULL DEFAULT -1;
",
];

pub(super) const BLOCKS: &[&str] = &["
CREATE TABLE IF NOT EXISTS block_part(block INTEGER PRIMARY KEY, data BLOB NOT NULL);
"];
