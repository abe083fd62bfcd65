//! Who may mount a volume where: noted before a node is asked to mount it. What a node then does needs its lease as well.

use tarbox_rpc::csi::attachment::Attachment;
use tarbox_store::{Database, Publication, StoreError, Tenant};
use tarbox_types::TenantId;

use super::live;
use crate::{
    databases::{Databases, Place},
    failure::{ControllerError, Result},
};

/// Notes that a volume may be mounted on a node.
///
/// # Errors
/// Where there is no such volume, or no such node as far as that is known; where another node has the volume, and the access modes
/// forbid two; where the same node has it otherwise.
pub(crate) async fn publish(
    databases: &Databases,
    new: &Publication,
    named: Option<&str>,
) -> Result<Attachment> {
    let place = databases.of_volume(new.tenant, named).await?;
    live(&*place.database, new.tenant).await?;
    check_node(databases, &place, &new.node).await?;
    match place.database.publish(new).await {
        Ok(()) => Ok(Attachment { node: new.node.clone(), read_only: new.read_only }),
        Err(StoreError::Deleted(_) | StoreError::NoTenant(_)) => {
            Err(ControllerError::NoVolume(new.tenant.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Agents report to the database of their own configuration, which is the controller's home.
async fn check_node(databases: &Databases, place: &Place, node: &str) -> Result<()> {
    let home = databases.home_beside(place).await?;
    let database = &home.as_ref().unwrap_or(place).database;
    if database.may_be_node(node).await? {
        return Ok(());
    }
    Err(ControllerError::NoNode(node.to_owned()))
}

/// Takes that back, of one node or of all. A volume that is not there is published nowhere.
///
/// # Errors
/// Where the database cannot be reached.
pub(crate) async fn unpublish(
    databases: &Databases,
    id: TenantId,
    node: Option<&str>,
    named: Option<&str>,
) -> Result<()> {
    let place = databases.of_volume(id, named).await?;
    Ok(place.database.unpublish(id, node).await?)
}

/// Names of the nodes that each of these tenants, in the order of their ids, may be mounted on; where none is noted, of that which holds it.
pub(crate) async fn nodes(database: &dyn Database, of: &[Tenant]) -> Result<Vec<Vec<String>>> {
    let (Some(first), Some(last)) = (of.first(), of.last()) else { return Ok(Vec::new()) };
    let noted = database.publications(first.id, last.id).await?;
    Ok(of.iter().map(|tenant| nodes_of(tenant, &noted)).collect())
}

fn nodes_of(tenant: &Tenant, noted: &[Publication]) -> Vec<String> {
    let begin = noted.partition_point(|publication| publication.tenant < tenant.id);
    let ours = noted[begin..].iter().take_while(|publication| publication.tenant == tenant.id);
    let ours: Vec<_> = ours.map(|publication| publication.node.clone()).collect();
    if ours.is_empty() { tenant.holder.iter().map(|holder| holder.node.clone()).collect() } else { ours }
}
