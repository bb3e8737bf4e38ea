metadata name = 'Network'
metadata description = 'The virtual network: a subnet for the apps and, if there are NATS nodes, one for those, with a NAT gateway through which they reach the Internet.'

@description('Required. Name of the virtual network.')
@minLength(2)
@maxLength(64)
param name string

@description('Required. Name of the NAT gateway.')
param natGatewayName string

@description('Required. Name of the public address of the NAT gateway.')
param publicIpName string

@description('Required. Name of the network security group of the nodes.')
param securityGroupName string

@description('Required. Region.')
param location string

@description('Required. Tags of the resources.')
param tags { *: string }

@description('Required. The network, at least a /21, as in 10.20.0.0/16.')
param addressPrefix string

@description('Required. The part of it for the apps: a /27 or larger that nothing else uses.')
param appsPrefix string

@description('Required. The part of it for the NATS nodes.')
param nodesPrefix string

@description('Required. Whether there are NATS nodes.')
param withNodes bool

@description('Required. Whether apps leave by the address of the NAT gateway, for subscribers that let known addresses in only. Nodes always do.')
param withNatGateway bool

// New networks have no way out of their own.
var natGatewayNeeded = withNatGateway || withNodes
var appsSubnet = 'snet-apps'
var nodesSubnet = 'snet-nodes'

resource publicIp 'Microsoft.Network/publicIPAddresses@2025-05-01' = if (natGatewayNeeded) {
  name: publicIpName
  location: location
  tags: tags
  sku: { name: 'Standard' }
  properties: {
    publicIPAllocationMethod: 'Static'
    publicIPAddressVersion: 'IPv4'
  }
}

resource natGateway 'Microsoft.Network/natGateways@2025-05-01' = if (natGatewayNeeded) {
  name: natGatewayName
  location: location
  tags: tags
  sku: { name: 'Standard' }
  properties: {
    idleTimeoutInMinutes: 4
    publicIpAddresses: [
      { id: publicIp.id }
    ]
  }
}

resource securityGroup 'Microsoft.Network/networkSecurityGroups@2025-05-01' = if (withNodes) {
  name: securityGroupName
  location: location
  tags: tags
  properties: {
    securityRules: [
      {
        name: 'apps-to-nats'
        properties: {
          description: 'Clients, and the monitoring that gridfan and scale rules read.'
          priority: 100
          direction: 'Inbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: appsPrefix
          sourcePortRange: '*'
          destinationAddressPrefix: nodesPrefix
          destinationPortRanges: ['4222', '8222']
        }
      }
      {
        name: 'nodes-to-nodes'
        properties: {
          description: 'Routes of the cluster; before a node reboots it asks the others whether they are well.'
          priority: 110
          direction: 'Inbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: nodesPrefix
          sourcePortRange: '*'
          destinationAddressPrefix: nodesPrefix
          destinationPortRanges: ['6222', '8222']
        }
      }
      {
        name: 'deny-all'
        properties: {
          description: 'Nothing else, the rest of the virtual network included.'
          priority: 4096
          direction: 'Inbound'
          access: 'Deny'
          protocol: '*'
          sourceAddressPrefix: '*'
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRange: '*'
        }
      }
    ]
  }
}

// All subnets are declared here: a separate resource would be lost when the
// network is deployed again.
resource network 'Microsoft.Network/virtualNetworks@2025-05-01' = {
  name: name
  location: location
  tags: tags
  properties: {
    addressSpace: { addressPrefixes: [addressPrefix] }
    subnets: concat(
      [
        {
          name: appsSubnet
          properties: {
            addressPrefix: appsPrefix
            delegations: [
              {
                name: 'container-apps'
                properties: { serviceName: 'Microsoft.App/environments' }
              }
            ]
            natGateway: withNatGateway ? { id: natGateway.id } : null
          }
        }
      ],
      withNodes
        ? [
            {
              name: nodesSubnet
              properties: {
                addressPrefix: nodesPrefix
                defaultOutboundAccess: false
                networkSecurityGroup: { id: securityGroup.id }
                natGateway: { id: natGateway.id }
              }
            }
          ]
        : []
    )
  }

  resource apps 'subnets' existing = {
    name: appsSubnet
  }

  resource nodes 'subnets' existing = {
    name: nodesSubnet
  }
}

@description('Resource id of the virtual network.')
output resourceId string = network.id

@description('Name of the virtual network.')
output name string = network.name

@description('Resource id of the subnet of the apps.')
output appsSubnetId string = network::apps.id

@description('Resource id of the subnet of the NATS nodes. There is one only if nodes were asked for.')
output nodesSubnetId string = network::nodes.id

@description('Public address by which apps and nodes reach the Internet; empty without a NAT gateway.')
output outboundAddress string = natGatewayNeeded ? publicIp!.properties.ipAddress : ''
