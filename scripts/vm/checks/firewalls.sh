# shellcheck shell=bash disable=SC2016,SC2154 # expanded in a container; variables of vm.sh
# Other users of the packet filter come and go; after each the flows of `workloads` are as before.

host_firewalls() {
    local way
    for way in none nft-flush nftables-restart iptables-flush ufw ufw-reload ufw-off firewalld firewalld-reload firewalld-off; do
        in_machine guest_firewalls "$way"
        flows "$way"
    done
}

guest_firewalls() {
    local since
    since=$(now)
    case $1 in
        none) ;;
        nft-flush) nft flush ruleset ;;
        nftables-restart) systemctl restart nftables ;;
        iptables-flush) for table in filter nat mangle raw; do iptables -t $table -F; done ;;
        ufw) ufw --force reset > /dev/null && ufw allow 22/tcp > /dev/null && ufw --force enable && systemctl start ufw && ufw status verbose ;;
        ufw-reload) ufw reload ;;
        ufw-off) ufw --force disable && systemctl stop ufw ;;
        firewalld)
            # An emulated machine needs longer than systemd allows; one that is killed while it starts leaves half its rules.
            mkdir -p /run/systemd/system/firewalld.service.d
            printf '[Service]\nTimeoutStartSec=20min\n' > /run/systemd/system/firewalld.service.d/slow.conf
            systemctl daemon-reload
            systemctl start firewalld && within 300 firewall-cmd --quiet --state
            # As docs/install.md says.
            firewall-cmd --permanent --zone=trusted --add-source=10.166.0.0/16
            firewall-cmd --reload && firewall-cmd --get-active-zones
            ;;
        firewalld-reload) firewall-cmd --reload ;;
        firewalld-off) firewall-cmd --permanent --zone=trusted --remove-source=10.166.0.0/16 && systemctl stop firewalld ;;
    esac
    # The daemon compares the rules every five seconds.
    sleep 12
    complaints "$since"
}
