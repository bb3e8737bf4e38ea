metadata name = 'Container Apps environment'
metadata description = 'Where the apps run, in a subnet of the virtual network.'

@description('Required. Name of the environment.')
@minLength(2)
@maxLength(32)
param name string

@description('Required. Region.')
param location string

@description('Required. Tags of the resource.')
param tags { *: string }

@description('Required. Resource id of the subnet; nothing else may use it. It cannot be changed later.')
param subnetId string

@description('Required. Whether replicas are spread over zones. It cannot be changed later.')
param zoneRedundant bool

@description('Required. Name of the Log Analytics workspace that gets the logs.')
@minLength(4)
@maxLength(63)
param workspaceName string

resource workspace 'Microsoft.OperationalInsights/workspaces@2025-07-01' existing = {
  name: workspaceName
}

resource appsEnvironment 'Microsoft.App/managedEnvironments@2026-01-01' = {
  name: name
  location: location
  tags: tags
  properties: {
    vnetConfiguration: {
      infrastructureSubnetId: subnetId
      // Event Grid reaches public addresses only.
      internal: false
    }
    publicNetworkAccess: 'Enabled'
    zoneRedundant: zoneRedundant
    workloadProfiles: [{ name: 'Consumption', workloadProfileType: 'Consumption' }]
    peerTrafficConfiguration: { encryption: { enabled: true } }
    appLogsConfiguration: {
      destination: 'log-analytics'
      logAnalyticsConfiguration: {
        customerId: workspace.properties.customerId
        sharedKey: workspace.listKeys().primarySharedKey
      }
    }
  }
}

@description('Resource id of the environment.')
output resourceId string = appsEnvironment.id

@description('Name of the environment.')
output name string = appsEnvironment.name

@description('Domain of the apps in it.')
output defaultDomain string = appsEnvironment.properties.defaultDomain

@description('Public address of the ingress.')
output staticIp string = appsEnvironment.properties.staticIp
