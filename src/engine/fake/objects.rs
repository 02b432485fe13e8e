//! How the fake engine's objects look from outside: the rows and details the port returns. Reads only.

use super::change::mountpoint;
use super::world::{Container, Image, World};
use crate::model::ids::EngineName;
use crate::model::observed::*;
use crate::model::spec::Restart;

/// Size of every fake image in bytes.
pub(super) const IMAGE_SIZE: u64 = 1_000_000;

impl Container {
    /// Its row in a list.
    pub fn summary(&self) -> ContainerSummary {
        let up = self.is_up();
        let status = match self.state {
            RunState::Created => "Created".to_owned(),
            RunState::Running => format!("Up 1 second{}", health_words(self.health)),
            RunState::Paused => "Up 1 second (Paused)".to_owned(),
            RunState::Restarting => format!("Restarting ({}) 1 second ago", self.exit_code),
            RunState::Removing => "Removal In Progress".to_owned(),
            RunState::Exited => format!("Exited ({}) 1 second ago", self.exit_code),
            RunState::Dead => "Dead".to_owned(),
        };
        ContainerSummary {
            id: self.id.clone(),
            name: self.name.clone(),
            image: self.spec.image.as_str().to_owned(),
            image_id: self.image_id.clone(),
            state: self.state,
            health: if up { self.health } else { HealthState::None },
            status,
            labels: self.spec.labels.clone(),
            ports: if up { self.bound.clone() } else { Vec::new() },
            created: self.created,
        }
    }

    /// What it was made with.
    pub fn made_with(&self) -> MadeWith {
        let s = &self.spec;
        let own = |line: &str| s.env.iter().any(|e| e.split('=').next() == line.split('=').next());
        MadeWith {
            env: self.behaviour.env.iter().filter(|e| !own(e)).chain(&s.env).cloned().collect(),
            command: s.command.clone().unwrap_or_default(),
            entrypoint: s.entrypoint.clone().unwrap_or_default(),
            user: s.user.clone().unwrap_or_default(),
            working_dir: s.working_dir.clone().unwrap_or_default(),
            network_mode: s.network_mode.clone().or(s.networks.first().map(|n| n.network.clone())).unwrap_or_default(),
            privileged: s.privileged,
            read_only: s.read_only,
            cap_add: s.cap_add.clone(),
            cap_drop: s.cap_drop.clone(),
            memory: s.memory.unwrap_or(0),
            nano_cpus: s.nano_cpus.unwrap_or(0),
            pids: s.pids.unwrap_or(0),
            settings: {
                let mut all = crate::engine::made::settings(s);
                let driver = s.logging.as_ref().map_or("", |l| l.driver.as_str());
                all.insert("logging.driver".into(), if driver.is_empty() { "json-file" } else { driver }.into());
                all.extend(s.logging.iter().flat_map(|l| &l.options).map(|(k, v)| (format!("logging.options.{k}"), v.clone())));
                all
            },
        }
    }

    /// Its detail.
    pub fn detail(&self) -> ContainerDetail {
        let wanted = self.spec.ports.iter().map(|p| PublishedPort {
            host_ip: p.host_ip.clone(),
            host_port: p.host_port.as_deref().and_then(|t| t.split('-').next()).and_then(|t| t.parse().ok()).unwrap_or(0),
            container_port: p.container_port,
            protocol: p.protocol.clone(),
        });
        ContainerDetail {
            id: self.id.clone(),
            name: self.name.clone(),
            image: self.spec.image.as_str().to_owned(),
            image_id: self.image_id.clone(),
            state: self.state,
            health: self.health,
            exit_code: self.exit_code,
            oom_killed: self.oom_killed,
            error: self.error.clone(),
            restart_count: self.restart_count,
            started_at: self.started_at,
            finished_at: self.finished_at,
            labels: self.spec.labels.clone(),
            restart_policy: policy_name(self.restart).to_owned(),
            networks: self.networks.iter().map(|(n, e)| (n.clone(), e.aliases.clone())).collect(),
            addresses: self.networks.iter().filter(|(_, e)| !e.address.is_empty()).map(|(n, e)| (n.clone(), e.address.clone())).collect(),
            mounts: self.mounts.clone(),
            ports: if self.is_up() { self.bound.clone() } else { wanted.collect() },
            last_health_output: self.last_health_output.clone(),
            pid: self.pid,
            health_test: self.health_test(),
        }
    }
}

impl Image {
    /// As the port shows it.
    pub fn info(&self) -> ImageInfo {
        ImageInfo {
            id: self.id.clone(),
            tags: self.tags.clone(),
            repo_digests: self.repo_digests.clone(),
            arch: self.behaviour.arch.clone(),
            size: IMAGE_SIZE,
            created: Some(self.created),
            user: self.behaviour.user.clone(),
            health_test: self.behaviour.health_test.clone(),
            volumes: self.behaviour.volumes.clone(),
            labels: self.behaviour.labels.clone(),
            env: self.behaviour.env.clone(),
        }
    }
}

impl World {
    /// A network as the port shows it.
    pub fn network_info(&self, name: &str) -> Option<NetworkInfo> {
        let n = self.networks.get(name)?;
        let attached = self.containers.values().filter(|c| c.is_up() && c.networks.contains_key(name));
        Some(NetworkInfo {
            id: n.id.clone(),
            name: name.to_owned(),
            driver: n.driver.clone(),
            internal: n.internal,
            labels: n.labels.clone(),
            options: n.options.clone(),
            ipv6: n.ipv6,
            attachable: n.attachable,
            subnets: n.pools.iter().filter_map(|p| p.subnet.clone()).collect(),
            pools: n.pools.clone(),
            ipam_driver: n.ipam_driver.clone(),
            containers: attached.map(|c| c.id.as_str().to_owned()).collect(),
        })
    }

    /// A volume as the port shows it.
    pub fn volume_info(&self, name: &str) -> Option<VolumeInfo> {
        let v = self.volumes.get(name)?;
        Some(VolumeInfo {
            name: EngineName::new(name).ok()?,
            driver: v.driver.clone(),
            mountpoint: mountpoint(name),
            labels: v.labels.clone(),
            options: v.options.clone(),
            created: Some(v.created),
        })
    }
}

/// The engine's name of a policy.
fn policy_name(restart: Restart) -> &'static str {
    match restart {
        Restart::No => "no",
        Restart::Always => "always",
        Restart::OnFailure(_) => "on-failure",
        Restart::UnlessStopped => "unless-stopped",
    }
}

fn health_words(health: HealthState) -> &'static str {
    match health {
        HealthState::None => "",
        HealthState::Starting => " (health: starting)",
        HealthState::Healthy => " (healthy)",
        HealthState::Unhealthy => " (unhealthy)",
    }
}
