-- Schema version 3: checkpoints that users make (purpose 3; they go with their tenant), and further names of layers.

CREATE UNIQUE INDEX snapshot_checkpoint ON tarbox.snapshot (tenant, request) WHERE purpose = 3;

CREATE TABLE tarbox.tag (
    tenant uuid NOT NULL,
    name   text NOT NULL,
    branch bigint NOT NULL,
    layer  bigint NOT NULL,
    PRIMARY KEY (tenant, name)
);
