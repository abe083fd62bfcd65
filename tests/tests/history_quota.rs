//! How much history a tenant may have: at its limit checkpoints are refused, by whatever way they are asked for; the tenant works on, the
//! database stops growing, and deletion gives room. On both databases.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use tarbox_tests::{
    cluster::{Cluster, cluster, run},
    controller::{map, volume},
    on_each_database,
    rng::Rng,
};
use tonic::Code;

const MIB: usize = 1 << 20;
const GIB: i64 = 1 << 30;
const LIMIT: Duration = Duration::from_secs(60);

/// Other bytes than before, committed when this returns.
fn rewrite(path: &Path, rng: &mut Rng) {
    let mut bytes = vec![0; 2 * MIB];
    bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&rng.next_u64().to_le_bytes()[..chunk.len()]));
    let mut file = File::create(path).expect("the tenant's own writes go on");
    file.write_all(&bytes).and_then(|()| file.sync_all()).expect("write");
}

on_each_database! {
    fn a_full_history_refuses_checkpoints_and_nothing_else(database) {
        let Cluster { controller, node, .. } = &cluster(database);
        run(async {
            let mut caller = controller.caller().await.expect("reach");
            let mut wanted = volume("pvc-1", GIB);
            wanted.parameters = map(&[("historyQuota", "7Mi")]);
            let id = caller.create(wanted).await.expect("made").volume_id;
            let published = node.publish(&id, "v").expect("published");
            let (file, mut rng) = (published.target.join("file"), Rng::new(7));
            let database = tarbox_store::open(controller.url()).await.expect("the database");
            let store = database.open_tenant(id.parse().expect("an id")).await.expect("the tenant");
            let mut made = Vec::new();
            let refused = loop {
                rewrite(&file, &mut rng);
                match caller.snapshot(&format!("s{}", made.len()), &id).await {
                    Ok(snapshot) => made.push(snapshot.snapshot_id),
                    Err(status) => break status,
                }
                assert!(made.len() < 10, "no end");
            };
            // Each but the last one keeps 2Mi that the head shows no more: beyond 7Mi with the fourth.
            assert_eq!(made.len(), 4, "{refused}");
            assert_eq!(refused.code(), Code::ResourceExhausted);
            for word in ["`historyQuota`", "7Mi", "8."] {
                assert!(refused.message().contains(word), "{word}: {refused}");
            }
            let asked_again = caller.snapshot("s0", &id).await.expect("it is made");
            assert_eq!(asked_again.snapshot_id, made[0]);
            let by_hand = node.tarbox_beside(&id, &["checkpoint", "create", &id, "by-hand"]).expect_err("full");
            assert!(by_hand.to_string().contains("`historyQuota` allows 7Mi"), "{by_hand}");
            let new = published.target.join(".tarbox/layers/new");
            let error = fs::write(&new, r#"{"name":"by-directory"}"#).expect_err("full");
            assert_eq!(error.raw_os_error(), Some(28), "ENOSPC: {error}");
            // Whatever is rewritten, the history does not grow.
            let before = store.history_bytes().await.expect("counted");
            for _ in 0..5 {
                rewrite(&file, &mut rng);
            }
            assert_eq!(store.history_bytes().await.expect("counted"), before);
            let kept = store.own_layers().await.expect("layers").len();
            assert_eq!(kept, made.len(), "nothing is left of what was refused");
            caller.delete_snapshot(&made[0]).await.expect("deleted");
            let begun = Instant::now();
            while store.history_bytes().await.expect("counted") >= before {
                assert!(begun.elapsed() < LIMIT, "deletion gives nothing back");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            fs::write(&new, r#"{"name":"by-directory"}"#).expect("there is room again");
            caller.modify(&id, &[("historyQuota", "0")]).await.expect("no limit");
            rewrite(&file, &mut rng);
            caller.snapshot("last", &id).await.expect("no limit");
        });
    }
}
